"""The quality guard inside a real vLLM engine: what it measures, that it backs off, and that it comes back."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from tiny_vllm import engine, prompts, save_model, tokens

from lynx_moe.control.loss import mass_lost, output_error
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step import watch as watch_module
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.watch import Watch

HARSH, MILD = "random:num_keep=4", "oea:k0=3"
ALL = {"steps": 1, "layers": 1, "shadow_steps": 1, "window": 16}
REQUESTS = prompts(16, seed=5, longest=1)


def decode(llm):
    """16 requests that start and end together, so that the load stays what it is; 23 decode steps."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, detokenize=False)
    return llm.generate(REQUESTS, params, use_tqdm=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


@pytest.fixture(scope="module")
def llm(model):
    with engine(model, HARSH) as llm:
        yield llm


@pytest.fixture
def fresh(llm):
    """The engine with the harsh policy, unguarded and with an empty cache."""
    lynx_vllm.set_guard(None)
    lynx_vllm.set_policy(HARSH)
    llm.reset_prefix_cache()
    yield llm
    lynx_vllm.set_guard(None)


@pytest.mark.parametrize("bound", [{"max_mass_lost": 0.05}, {"max_error": 0.02}])
def test_a_harmful_policy_gives_way_and_every_change_is_logged_and_counted(fresh, caplog, bound):
    lynx_vllm.set_guard({**ALL, **bound})
    before = active().policy_changes["guard"]
    with caplog.at_level(logging.WARNING, logger="vllm.lynx_moe"):
        decode(fresh)
    state = lynx_vllm.guard()
    assert state["rungs"][0] == HARSH
    assert state["rung"] == len(state["rungs"]) - 1
    assert lynx_vllm.stats().policy == state["rungs"][-1] == "vanilla"
    assert state["changes"] == {"back_off": state["rung"], "recover": 0}
    assert active().policy_changes["guard"] - before == state["rung"]
    lines = [record.getMessage() for record in caplog.records if "guard" in record.getMessage()]
    assert len(lines) == state["rung"]
    assert f"so {HARSH} gives way to " in lines[0]
    assert state["seconds"] > 0


def test_under_vanilla_s_rung_tokens_are_the_model_s_own(fresh):
    lynx_vllm.set_policy("vanilla")
    exact = tokens(decode(fresh))
    lynx_vllm.set_policy(HARSH)
    lynx_vllm.set_guard({**ALL, "max_mass_lost": 0.05, "max_error": 0.02, "ladder": []})
    decode(fresh)
    assert lynx_vllm.guard()["rung"] == 1
    fresh.reset_prefix_cache()
    assert tokens(decode(fresh)) == exact, "shadow steps leave no trace"


def test_what_is_good_enough_is_left_alone_and_what_has_become_so_comes_back(fresh):
    lynx_vllm.set_policy(MILD)
    lynx_vllm.set_guard({**ALL, "max_mass_lost": 0.999, "max_error": 1})
    decode(fresh)
    state = lynx_vllm.guard()
    assert state["rung"] == 0
    assert state["samples"]["mass_lost"] >= 16
    assert 0 < state["now"]["mass_lost"] < 1
    assert 0 < state["now"]["output_error"] < 1
    watch = active().watch
    watch._change(watch.guard._change(1, "a test", backs_off=True))  # as if the load had been another one
    assert lynx_vllm.stats().policy == "vanilla"
    decode(fresh)
    assert lynx_vllm.guard()["rung"] == 0
    assert lynx_vllm.guard()["changes"] == {"back_off": 1, "recover": 1}
    assert lynx_vllm.stats().policy == MILD


def test_the_figures_are_those_of_the_routing_and_of_the_block(fresh, model, monkeypatch):
    """Each output against a plain sum over the checkpoint's experts, each figure against the two routings."""
    seen, outputs = [], []
    see, block_output = Watch.see, watch_module.block_output

    def spy(self, layer, logits, own, final, hidden):
        see(self, layer, logits, own, final, hidden)
        seen.append((layer, own, final, [(name, float(pair[0])) for name, pair in self.taken]))

    def block(runner, hidden, routing):
        out = block_output(runner, hidden, routing)
        outputs.append((hidden.float(), routing, out.float()))
        return out

    monkeypatch.setattr(Watch, "see", spy)
    monkeypatch.setattr(watch_module, "block_output", block)
    lynx_vllm.set_guard({**ALL, "shadow_steps": 0.5, "max_mass_lost": 1, "max_error": 1})
    decode(fresh)
    layer, own, final, taken = next(one for one in seen if one[3][-1][0] == "output_error")
    (x, _, exact), (_, _, got) = outputs[:2]
    assert ("mass_lost", pytest.approx(float(mass_lost(own, final)))) in taken
    assert ("output_error", pytest.approx(float(output_error(exact, got)))) in taken
    weights = load_file(f"{model}/model.safetensors")

    def expert(number, row):
        gate, up, down = (
            weights[f"model.layers.{layer}.mlp.experts.{number}.{part}_proj.weight"].float()
            for part in ("gate", "up", "down")
        )
        return down @ (torch.nn.functional.silu(gate @ x[row]) * (up @ x[row]))

    for routing, out in ((own, exact), (final, got)):
        for row in range(3):
            pairs = zip(routing.ids[row].tolist(), routing.weights[row].tolist(), strict=True)
            expected = torch.stack([weight * expert(number, row) for number, weight in pairs]).sum(0)
            torch.testing.assert_close(out[row], expected, rtol=0.05, atol=0.02)  # the kernel computes in bfloat16
    assert not torch.allclose(exact, got, atol=0.1)


def test_a_new_policy_starts_a_new_ladder(fresh):
    lynx_vllm.set_guard({**ALL, "max_mass_lost": 0.05})
    decode(fresh)
    assert lynx_vllm.guard()["rung"] > 0
    lynx_vllm.set_policy("oea:k0=3")
    state = lynx_vllm.guard()
    assert (state["rung"], state["rungs"]) == (0, ["oea:k0=3", "vanilla"])


def test_a_ladder_that_does_not_fit_is_refused_and_changes_nothing(fresh):
    lynx_vllm.set_guard({**ALL, "max_mass_lost": 0.05, "ladder": []})
    decode(fresh)
    backed_off = lynx_vllm.guard()
    with pytest.raises(ValueError, match="k0=9 is more than the model's top_k=4"):
        lynx_vllm.set_guard({"max_mass_lost": 0.1, "ladder": ["oea:k0=9"]})
    assert lynx_vllm.guard() == backed_off
    assert lynx_vllm.stats().policy == "vanilla"
    lynx_vllm.set_guard(None)
    assert lynx_vllm.stats().policy == HARSH


def test_samples_fall_on_the_asked_share_of_steps_and_layers(fresh, monkeypatch):
    lynx_vllm.set_guard({"max_mass_lost": 1, "max_error": 1, "steps": 0.25, "layers": 0.5, "shadow_steps": 0.125})
    watch, wanted = active().watch, []
    begin = Watch.begin_step

    def spy(self, *, acts):
        begin(self, acts=acts)
        if acts:
            wanted.append((list(self.layers), self.shadow))

    monkeypatch.setattr(Watch, "begin_step", spy)
    decode(fresh)
    first = wanted[:16]
    assert [layers for layers, _ in first if layers] == [[1], [0], [1], [0]]
    assert [place for place, (layers, _) in enumerate(first, 1) if layers] == [4, 8, 12, 16]
    assert [(place, shadow) for place, (_, shadow) in enumerate(first, 1) if shadow >= 0] == [(8, 1), (16, 0)]
    assert watch.guard.samples["mass_lost"] >= 4
