"""Every MoE architecture of transformers: what holds inside the block, and that leaving it leaves nothing behind."""

import warnings
from typing import Any, ClassVar

import pytest
import torch
import transformers
from places import REFERENCE, ROOT
from tiny_transformers import ARCHITECTURES, REFUSED, beside, cache_of, make, moe_model_types
from torch import Tensor

import lynx_moe
from lynx_moe.policies.published.lynx import Lynx
from lynx_moe.routing import Routing, select

BATCH, PROMPT = 6, 5
ALONE, CARRIED = 0, 2  # a sequence with two tokens of left padding, and one whose newest token does not count


class Spy(Lynx):
    """Lynx with few experts left, and a record of (logits, spec, rows, own, final) of every decision."""

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def decide(self, logits_TE, spec, rows=None, own=None):
        final = super().decide(logits_TE, spec, rows, own)
        self.calls.append((logits_TE, spec, rows, own, final))
        return final


SPY = Spy(alpha=0.3, beta=1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return make(ARCHITECTURES[request.param])


@pytest.fixture(autouse=True)
def _quiet():
    Spy.calls.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lynx_moe: layer model.layers.0.mlp.gate keeps")  # hash routing
        yield


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Prompts, next tokens, and the mask of both."""
    torch.manual_seed(3)
    mask = torch.ones(BATCH, PROMPT + 1, dtype=torch.long)
    mask[ALONE, :2] = 0
    mask[CARRIED, -1] = 0
    return torch.randint(3, 90, (BATCH, PROMPT)), torch.randint(3, 90, (BATCH, 1)), mask


def two_steps(model) -> tuple[Tensor, Tensor]:
    """Logits of a prefill and of a decode step beside its cache."""
    prompt, token, mask = inputs()
    with torch.inference_mode():
        first = model(prompt, attention_mask=mask[:, :PROMPT], use_cache=True)
        second = model(token, attention_mask=mask, **beside(model, cache_of(first)))
    return first.logits, second.logits


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def replaced(model) -> list[str]:
    """Functions and hooks that sit on single modules."""
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if hasattr(value, "__wrapped__") or (key.endswith("_hooks") and value)
    ]


def test_vanilla_is_bit_identical_and_leaving_restores_the_model(model):
    plain = two_steps(model)
    before = replaced(model)
    with lynx_moe.apply(model, "vanilla") as run:
        assert same(two_steps(model), plain)
        assert len(replaced(model)) == len(before) + len(run.layers) + 3
    assert run.stats().mean_before == run.stats().mean_after > 1
    with lynx_moe.apply(model, SPY):
        assert not same(two_steps(model), plain)
    assert same(two_steps(model), plain)
    assert replaced(model) == before


def dense(routing: Routing, num_experts: int) -> Tensor:
    return torch.zeros(len(routing.ids), num_experts).scatter(1, routing.ids, routing.weights)


def record(model, calls: list[Any]) -> list[Any]:
    """Hooks that record what the experts of each layer are called with: (ids, weights), or weights [T, E]."""

    def chosen(_experts, args):
        calls.append(args[1:3])

    def dense_scores(_router, _args, output):  # every expert computes every row, scaled by these
        calls.append(output[0])

    def grouped(router, _args, output):
        _, rows_S, gates_S, sizes, logits_TE = output
        experts_S = torch.arange(router.num_experts).repeat_interleave(torch.tensor(sizes))
        calls.append(torch.zeros_like(logits_TE).index_put((rows_S, experts_S), gates_S))

    handles = []
    for module in model.modules():
        kind = type(module).__name__
        if kind == "Llama4Router":
            handles.append(module.register_forward_hook(dense_scores))
        elif kind == "JetMoeTopKGating":
            handles.append(module.register_forward_hook(grouped))
        elif kind.endswith("Experts") and not kind.startswith(("Llama4", "JetMoe")):
            handles.append(module.register_forward_pre_hook(chosen))
    return handles


def test_the_experts_get_what_the_policy_returned(model):
    calls: list[Any] = []
    handles = record(model, calls)
    with lynx_moe.apply(model, SPY) as run:
        two_steps(model)
    for handle in handles:
        handle.remove()
    assert len(Spy.calls) == len(run.layers)  # the decode step alone
    got = calls[len(calls) // 2 + len(run.bypassed) :]
    for (_, spec, rows, own, final), taken in zip(Spy.calls, got, strict=True):
        if isinstance(taken, tuple):
            ids_TK, weights_TK = taken
            assert ids_TK.dtype == torch.int64
            assert torch.equal(ids_TK, final.ids)
            assert torch.equal(weights_TK, final.weights.to(weights_TK.dtype))
        else:
            assert torch.equal(taken.float(), dense(final, spec.num_experts))
        assert rows.valid.tolist() == [row != CARRIED for row in range(BATCH)]
        assert rows.remap.all()
        assert not final.weights[CARRIED].any()
        assert not torch.equal(own.ids, final.ids)


def test_the_table_s_rule_is_the_model_s(model):
    with lynx_moe.apply(model, SPY):
        two_steps(model)
    for logits_TE, spec, _, own, _ in Spy.calls:
        ours = select(logits_TE, spec)
        mine, theirs = (dense(routing, spec.num_experts) for routing in (ours, own))
        assert torch.equal(mine > 0, theirs > 0)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)


VARIANTS = {
    "cohere2_moe": ({"expert_selection_fn": "softmax"}, {"expert_selection_fn": "sigmoid", "norm_topk_prob": False}),
    "dbrx": ({"ffn_config": {**ARCHITECTURES["dbrx"].config["ffn_config"], "moe_normalize_expert_weights": None}},),
    "deepseek_v2": ({"topk_method": "greedy"},),
    "deepseek_v3": ({"n_group": 1, "topk_group": 1}, {"norm_topk_prob": False}),
    "deepseek_v4": ({"scoring_func": "sigmoid"},),
    "lfm2_moe": ({"use_expert_bias": False}, {"norm_topk_prob": False}),
    "mistral4": ({"n_group": 1, "topk_group": 1},),
    "olmoe": ({"norm_topk_prob": True}, {"norm_topk_prob": False}),
}


@pytest.mark.parametrize(("name", "config"), [(n, config) for n, each in VARIANTS.items() for config in each], ids=str)
def test_the_table_s_rule_follows_the_configuration(name, config):
    test_the_table_s_rule_is_the_model_s(make(ARCHITECTURES[name], **config))
    assert Spy.calls


def test_a_norm_that_no_policy_computes_is_left_alone():
    ffn = {**ARCHITECTURES["dbrx"].config["ffn_config"], "moe_normalize_expert_weights": 2.0}
    with pytest.raises(ValueError, match=r"no MoE layer of DbrxForCausalLM can be remapped: .* 2-norm"):
        lynx_moe.apply(make(ARCHITECTURES["dbrx"], ffn_config=ffn), "lynx")


def test_prompts_keep_their_routing_and_generate_saves_experts(model):
    plain = two_steps(model)[0]
    prompt, _, mask = inputs()
    with lynx_moe.apply(model, SPY) as run:
        assert torch.equal(two_steps(model)[0], plain)
        run.reset_stats()
        given = {"attention_mask": mask[:, :PROMPT], "eos_token_id": None, "do_sample": False}
        model.generate(prompt, **given, max_new_tokens=4)
    stats = run.stats()
    assert stats.steps == {"prefill": 1, "single": 0, "decode": 3, "mixed": 0}
    assert all(layer.decode.rows == layer.decode.decode_rows == 3 * BATCH for layer in stats.layers)
    assert stats.mean_after < stats.mean_before


def test_statistics_are_of_the_final_ids(model):
    with lynx_moe.apply(model, SPY) as run:
        two_steps(model)
    counted = [(layer.decode.before, layer.decode.after, layer.decode.changed_rows) for layer in run.stats().layers]

    def number(routing: Routing, rows) -> int:
        return len(set(routing.ids[rows.valid].flatten().tolist()))

    expected = [
        (number(own, rows), number(final, rows), int((own.ids != final.ids).any(1)[rows.valid].sum()))
        for _, _, rows, own, final in Spy.calls
    ]
    assert sorted(counted) == sorted(expected)  # JetMoe runs its layers in another order than it lists them


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_remapped_is_refused_with_its_reason(name):
    architecture, reason = REFUSED[name]
    with pytest.raises(ValueError, match=f"no MoE layer of .* can be remapped: .*{reason}"):
        lynx_moe.apply(make(architecture), "lynx")


def test_every_architecture_of_transformers_is_here():
    unknown = ", ".join(sorted(moe_model_types() - {name.partition("-")[0] for name in [*ARCHITECTURES, *REFUSED]}))
    if f"transformers=={transformers.__version__}\n" not in (ROOT / "constraints.txt").read_text() and unknown:
        pytest.skip(f"model families that transformers {transformers.__version__} has beside the pinned one: {unknown}")
    assert not unknown


def test_every_architecture_is_in_the_documentation():
    page = (REFERENCE / "transformers.md").read_text()
    for name in ARCHITECTURES:
        assert f"| `{name}` | yes" in page
    for name in REFUSED:
        assert f"| `{name.partition('-')[0]}` | no" in page or f"| `{name.partition('-')[0]}` | yes, " in page
