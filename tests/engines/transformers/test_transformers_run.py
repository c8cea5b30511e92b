"""`apply`: what it takes, what it refuses, and what a researcher can change."""

import subprocess
import sys
import warnings
from copy import deepcopy

import pytest
import torch
from tiny_transformers import ARCHITECTURES, COMMON, beside, cache_of, make
from transformers import Qwen3Config, Qwen3ForCausalLM

import lynx_moe
from lynx_moe.policies import make_policy
from lynx_moe.routing import Routing, Rows

SPEC = "lynx:alpha=0.3,beta=1"
PROMPT = 4


@pytest.fixture(scope="module")
def model():
    return make(ARCHITECTURES["qwen3_moe"], num_hidden_layers=3)


def tokens(length, seed=5):
    torch.manual_seed(seed)
    return torch.randint(3, 90, (6, length))


def steps(model):
    """Logits of a prefill and of a decode step."""
    with torch.no_grad():
        first = model(tokens(PROMPT), use_cache=True)
        second = model(tokens(1, 6), **beside(model, cache_of(first)))
    return first.logits, second.logits


def changed(run):
    return [layer.decode.changed_rows + layer.mixed.changed_rows for layer in run.stats().layers]


def test_install_and_remove_are_the_block(model):
    plain = steps(model)[1]
    with lynx_moe.apply(model, SPEC):
        inside = steps(model)[1]
    run = lynx_moe.apply(model, make_policy(SPEC))
    assert torch.equal(steps(model)[1], plain)  # not yet
    assert run.install() is run
    assert torch.equal(steps(model)[1], inside)
    run.remove()
    run.remove()
    assert torch.equal(steps(model)[1], plain)
    assert not torch.equal(inside, plain)
    with run:
        assert torch.equal(steps(model)[1], inside)


def test_one_policy_at_a_time(model):
    with lynx_moe.apply(model, SPEC):
        second = lynx_moe.apply(model, "vanilla")
        with pytest.raises(ValueError, match="acts on this model already"):
            second.install()
    with second:
        steps(model)
    assert second.stats().steps["decode"] == 1


def test_an_error_inside_the_block_restores_the_model(model):
    plain = steps(model)[1]
    run = lynx_moe.apply(model, SPEC)
    with pytest.raises(IndexError), run:
        model(torch.full((2, 2), 10**6))
    assert torch.equal(steps(model)[1], plain)
    with run:
        steps(model)
    assert run.bypassed == {}


@pytest.mark.parametrize(
    ("phase", "prefill", "decode"), [("decode", False, True), ("prefill", True, False), ("all", True, True)]
)
def test_the_phase_says_which_rows_may_change(model, phase, prefill, decode):
    plain, kinds = steps(model), []
    with lynx_moe.apply(model, SPEC, phase=phase) as run:
        first, second = steps(model)
        kinds.append(run.stats().steps["decode"])
    assert torch.equal(first, plain[0]) != prefill
    assert (not torch.equal(second, plain[1])) == (prefill or decode)  # its cache was written in the prefill
    assert kinds == [prefill + decode]
    assert [layer.decode.rows for layer in run.stats().layers] == [6 * PROMPT * prefill + 6 * decode] * 3


def test_layers_leave_the_others_alone(model):
    with lynx_moe.apply(model, SPEC, layers=[2, 0]) as run:
        steps(model)
    assert [layer.name for layer in run.layers] == ["model.layers.0.mlp.gate", "model.layers.2.mlp.gate"]
    assert run.bypassed == {"model.layers.1.mlp.gate": "not among layers="}
    assert all(changed(run))
    router, asked = model.model.layers[1].mlp.gate, []
    handle = router.register_forward_hook(lambda _m, args, output: asked.append((args[0], output)))
    with lynx_moe.apply(model, SPEC, layers=range(1)):
        steps(model)
    handle.remove()
    args, output = asked[-1]
    assert all(torch.equal(a, b) for a, b in zip(router(args), output, strict=True))


def test_rows_of_the_user_go_before_everything(model):
    plain = steps(model)
    cache = None
    with lynx_moe.apply(model, SPEC) as run, torch.no_grad():
        remap = torch.tensor([True, False, True, True, False, True]).repeat_interleave(PROMPT)
        run.rows = Rows(remap=remap)
        first = model(tokens(PROMPT), use_cache=True)
        cache = cache_of(first)
        assert not torch.equal(first.logits, plain[0])
        assert run.stats().steps == {"prefill": 0, "single": 0, "decode": 0, "mixed": 1}
        mixed = run.stats().layers[0].mixed
        assert (mixed.rows, mixed.decode_rows) == (6 * PROMPT, 4 * PROMPT)
        with pytest.raises(ValueError, match=r"run\.rows: remap .* needs torch\.bool \[6\]"):
            model(tokens(1), **beside(model, cache))
        run.rows = Rows(valid=torch.arange(6) < 3, remap=torch.zeros(6, dtype=torch.bool))
        model(tokens(1), **beside(model, cache))
        assert run.stats().steps["prefill"] == 1
        run.rows = None
        model(tokens(1), **beside(model, cache))
        assert run.stats().steps["decode"] == 1


def test_rows_given_by_hand_may_ask_prices(model):
    cheap, dear = (lynx_moe.apply(model, f"priced:price={price}") for price in (0.02, 5.0))
    with torch.no_grad():
        cache = cache_of(model(tokens(PROMPT), use_cache=True))
        expected = []
        for run in (cheap, dear):
            with run:
                expected.append(model(tokens(1), **beside(model, deepcopy(cache))).logits)
        with lynx_moe.apply(model, "priced") as run:
            for price, logits in zip((0.02, 5.0), expected, strict=True):
                run.rows = Rows(price=torch.full((6,), price))
                assert torch.equal(model(tokens(1), **beside(model, deepcopy(cache))).logits, logits)
            run.reset_stats()
            run.rows = Rows(price=torch.tensor([0.0, 0.02, 5.0, 0.0, 0.02, 5.0]))
            model(tokens(1), **beside(model, deepcopy(cache)))
            alike = run.stats().layers[0].alike
            assert (alike.rows, alike.decode_rows) == (6, 4)
            run.rows = Rows(price=torch.ones(6).double())
            with pytest.raises(
                ValueError, match=r"run\.rows: price is torch\.float64 \[6\], but .* torch\.float32 \[6\]"
            ):
                model(tokens(1), **beside(model, cache))
    assert not torch.equal(*expected)


def test_a_mask_that_says_nothing_is_refused_unless_rows_say_it(model):
    mask = torch.ones(6, 1, PROMPT, PROMPT, dtype=torch.bool).tril()
    with lynx_moe.apply(model, SPEC) as run, torch.no_grad():
        with pytest.raises(ValueError, match="does not say which tokens are padding"):
            model(tokens(PROMPT), attention_mask=mask)
        run.rows = Rows()
        model(tokens(PROMPT), attention_mask=mask)
    assert run.stats().steps["decode"] == 1


def test_packed_sequences_keep_their_routing_with_a_warning(model):
    packed = torch.tensor([0, 3, 6], dtype=torch.int32)
    with lynx_moe.apply(model, SPEC, phase="all") as run, torch.no_grad():
        with pytest.warns(UserWarning, match=r"packed into one row keep the model's own routing"):
            model(tokens(1).T, cu_seq_lens_q=packed, use_cache=False)
        assert run.stats().steps["prefill"] == 1
        run.rows = Rows()
        model(tokens(1).T, cu_seq_lens_q=packed, use_cache=False)
    assert run.stats().steps["decode"] == 1


def test_open_knobs_are_filled_in_for_the_model():
    model = make(ARCHITECTURES["mixtral"], num_hidden_layers=1)
    assert lynx_moe.apply(model, "lynx").policy.spec == "lynx"
    model.config.num_hidden_layers = 32  # as published for Mixtral-8x7B
    assert lynx_moe.apply(model, "lynx").policy.spec == "lynx:alpha=0.7,beta=1"


def test_one_expert_per_token():
    model = make(ARCHITECTURES["mixtral"], num_experts_per_tok=1)
    with lynx_moe.apply(model, "lynx:alpha=0.1,beta=1") as run:
        steps(model)
    assert run.stats().mean_after < run.stats().mean_before


def test_one_sequence_alone_is_never_changed(model):
    with torch.no_grad():
        cache = cache_of(model(tokens(PROMPT)[:1], use_cache=True))
        plain = model(tokens(1)[:1], **beside(model, cache)).logits
        cache.crop(-1)
        with lynx_moe.apply(model, SPEC, phase="all") as run:
            assert torch.equal(model(tokens(1)[:1], **beside(model, cache)).logits, plain)
    assert run.stats().steps == {"prefill": 0, "single": 1, "decode": 0, "mixed": 0}


def test_the_decision_needs_no_gradient_and_leaves_the_model_trainable(model):
    with lynx_moe.apply(model, SPEC) as run:
        cache = cache_of(model(tokens(PROMPT), use_cache=True))
        model(tokens(1), **beside(model, cache)).logits.sum().backward()
    assert all(changed(run))
    model.zero_grad()


def test_counts_can_be_read_where_inference_mode_ends(model):
    with torch.inference_mode():
        run = lynx_moe.apply(model, SPEC)
    with run:
        steps(model)
        with torch.inference_mode():
            steps(model)
        run.reset_stats()
        steps(model)
    assert run.stats().steps["decode"] == 1
    assert run.stats().as_dict()["mean_after"] == run.stats().mean_after > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "linx"}, "did you mean 'lynx'"),
        ({"policy": "oea:k0=3"}, r"more than the model's top_k=2.*\(layer model\.layers\.0\.mlp\.gate of Qwen3Moe"),
        ({"phase": "decoding"}, "phase='decoding' is unknown; allowed: decode, prefill, all"),
        ({"layers": [0, 3]}, r"layers=\[0, 3\]: name some of 0 to 2"),
        ({"layers": []}, r"layers=\[\]: name some of 0 to 2"),
    ],
)
def test_mistakes_are_refused_before_anything_is_replaced(model, options, message):
    with pytest.raises(ValueError, match=message):
        lynx_moe.apply(model, **{"policy": SPEC, **options})
    assert "forward" not in vars(model.model)


def test_models_without_anything_to_remap_are_refused(model):
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    dense = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=1, **{key: COMMON[key] for key in keys}))
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no MoE layer, so there is nothing to remap"):
        lynx_moe.apply(dense, SPEC)
    with pytest.raises(ValueError, match="needs a transformers model, got Linear"):
        lynx_moe.apply(torch.nn.Linear(1, 1), SPEC)
    with pytest.raises(ValueError, match="needs a transformers model, got str"):
        lynx_moe.apply("Qwen/Qwen3-30B-A3B", SPEC)


@pytest.mark.parametrize("key", ["_tp_size", "hf_device_map"])
def test_models_that_are_split_over_devices_are_refused(model, monkeypatch, key):
    monkeypatch.setattr(
        model, key, 2 if key == "_tp_size" else {"model.layers.0": 0, "model.layers.1": 1}, raising=False
    )
    with pytest.raises(ValueError, match="split over devices"):
        lynx_moe.apply(model, SPEC)


def test_the_inner_model_and_a_compiled_wrapper_are_taken_too(model):
    with lynx_moe.apply(model.model, SPEC) as run:
        steps(model)
    assert all(changed(run))
    with lynx_moe.apply(torch.compile(model, backend="eager"), SPEC) as run:
        steps(model)
    assert all(changed(run))


def test_layers_that_keep_their_routing_are_named():
    model = make(ARCHITECTURES["deepseek_v4"])
    with pytest.warns(UserWarning, match=r"layer model\.layers\.0\.mlp\.gate keeps .* chosen by token id"):
        lynx_moe.apply(model, SPEC).install().remove()


def test_a_fused_block_that_does_not_ask_its_router_is_named(model):
    block = model.model.layers[1].mlp
    block.forward = lambda hidden: hidden
    try:
        with (
            lynx_moe.apply(model, SPEC) as run,
            pytest.warns(UserWarning, match=r"layers\.1\.mlp\.gate .* was not asked"),
        ):
            steps(model)
    finally:
        del block.forward
    assert [layer.name for layer in run.stats().layers] == ["model.layers.0.mlp.gate", "model.layers.2.mlp.gate"]
    assert "was not asked" in run.stats().bypassed_layers["model.layers.1.mlp.gate"]


def test_a_router_that_returns_something_else_is_refused(model):
    router = model.model.layers[0].mlp.gate
    original = router.forward
    router.forward = lambda hidden: tuple(part[: len(part) // 2] for part in original(hidden))
    try:
        with (
            lynx_moe.apply(model, SPEC, phase="all"),
            pytest.raises(ValueError, match=r"routes logits \(12, 8\) .* expected \(24, 8\)"),
        ):
            steps(model)
    finally:
        del router.forward


def test_a_layer_that_runs_alone_is_named(model):
    with lynx_moe.apply(model, SPEC) as run, pytest.warns(UserWarning, match="ran outside its decoder's forward"):
        model.model.layers[0].mlp(torch.randn(2, 1, COMMON["hidden_size"]))
    assert changed(run) == [0, 0, 0]


def test_batched_mm_is_warned_of_once(model):
    model.set_experts_implementation("batched_mm")
    try:
        with pytest.warns(UserWarning, match="fewer distinct experts save no time"):
            run = lynx_moe.apply(model, SPEC).install()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate(tokens(PROMPT), max_new_tokens=3)
        run.remove()
        model.set_experts_implementation("grouped_mm")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run = lynx_moe.apply(model, SPEC).install()
        model.set_experts_implementation("batched_mm")  # as generate does on a GPU
        with pytest.warns(UserWarning, match="save no time"):
            model.generate(tokens(PROMPT), max_new_tokens=3)
        run.remove()
    finally:
        model.set_experts_implementation("grouped_mm")


def test_policies_get_the_choice_that_the_engine_made(model):
    """Weights in bfloat16 steps are those that the router returned, not ones that were computed again."""
    got: list[Routing] = []

    class Listening(type(make_policy("lynx"))):
        def decide(self, logits_TE, spec, rows=None, own=None):
            got.append(own)
            return own

    router, returned = model.model.layers[0].mlp.gate, []
    original = router.forward
    router.forward = lambda hidden: returned.append(original(hidden)) or returned[-1]
    try:
        with lynx_moe.apply(model, Listening()):
            steps(model)
    finally:
        del router.forward
    assert torch.equal(got[0].ids, returned[-1][2])
    assert torch.equal(got[0].weights, returned[-1][1].float())


def test_importing_the_package_imports_no_engine():
    code = "import sys, lynx_moe; lynx_moe.apply; print('transformers' in sys.modules, 'vllm' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'applied'"):
        lynx_moe.applied  # noqa: B018
