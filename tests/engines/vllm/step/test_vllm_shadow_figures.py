"""What shadow steps measure, on one engine in which every step is one: figures, the guard, and the bound on them."""

import logging

import pytest
from tiny_vllm import engine, generate, prompts, runner_of, save_model, tokens

from lynx_moe.control.loss import compare
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.launch import twice
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.shadows.passes import Shadows

HARSH = "random:num_keep=8"
REQUESTS = prompts(24, seed=3)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    model = save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))
    with engine(model, additional_config={"lynx_moe": {"policy": "priced", "shadow": 1}}) as llm:
        yield llm


def test_a_policy_that_changes_nothing_measures_nothing_at_all(llm):
    lynx_vllm.set_policy("priced:price=1e-30")
    active().shadows.sums.effects.clear()
    generate(llm, REQUESTS)
    told = lynx_vllm.stats().shadows["batches"]
    assert sum(one["rows"] for one in told) > 100
    assert {(one["kl"], one["agree"], one["change"]) for one in told} == {(0.0, 1.0, 0.0)}


def test_the_figures_are_those_of_the_two_distributions(llm, monkeypatch):
    """Each pass's logits, taken from the model itself, compared row by row."""
    lynx_vllm.set_policy(HARSH)
    seen, measured = [], []
    compute, compared = runner_of(llm).model.compute_logits, Shadows.compare

    def compute_logits(hidden, *args):
        seen.append(compute(hidden, *args))
        return seen[-1]

    def spy(self, logits, remap, server, lag):
        exact, rows = seen[-2].float(), remap[self.indices]
        kl, agree, change, _ = compare(exact.log_softmax(-1), logits.float().log_softmax(-1), logits.argmax(-1))
        compared(self, logits, remap, server, lag)
        effect = self.travelling[-1][1].take()[:4]
        measured.append((effect, [int(rows.sum()), *(float(part[rows].sum()) for part in (kl, agree, change))]))

    monkeypatch.setattr(runner_of(llm).model, "compute_logits", compute_logits)
    monkeypatch.setattr(Shadows, "compare", spy)
    generate(llm, REQUESTS)
    assert len(measured) > 20
    for effect, expected in measured:
        assert effect == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert max(effect[1] / effect[0] for effect, _ in measured) > 0.01


def test_a_guard_gives_way_by_the_kl_and_comes_back(llm, caplog):
    lynx_vllm.set_policy(HARSH)
    lynx_vllm.set_guard({"max_kl": 0.001, "window": 16, "ladder": []})
    with caplog.at_level(logging.WARNING, logger="vllm.lynx_moe"):
        generate(llm, REQUESTS)
        generate(llm, REQUESTS)  # the rung above is measured meanwhile
    state = lynx_vllm.guard()
    assert lynx_vllm.stats().policy == "vanilla"
    assert state["changes"] == {"back_off": 1, "recover": 0}
    assert "guard: kl " in caplog.text
    assert state["above"]["kl"] > 0.001  # measured by trials, which nobody's tokens come from
    lynx_vllm.set_policy("priced:price=0.01")
    watch = active().watch
    watch._change(watch.guard._change(1, "a test", backs_off=True))
    generate(llm, REQUESTS)
    assert lynx_vllm.guard()["rung"] == 0
    lynx_vllm.set_guard(None)


def test_under_a_trial_tokens_are_the_model_s_own(llm):
    lynx_vllm.set_policy("vanilla")
    llm.reset_prefix_cache()
    exact = tokens(generate(llm, REQUESTS))
    lynx_vllm.set_policy(HARSH)
    lynx_vllm.set_guard({"max_kl": 0.0001, "window": 16, "ladder": []})
    generate(llm, REQUESTS)
    assert lynx_vllm.guard()["rung"] == 1
    llm.reset_prefix_cache()
    assert tokens(generate(llm, REQUESTS)) == exact
    lynx_vllm.set_guard(None)


def test_an_engine_that_can_has_a_share_of_shadow_steps(llm):
    config = llm.llm_engine.vllm_config
    assert twice.refusal(config) is None
    assert twice.share(config, None, bounded=False) == 1 / 256
    assert twice.share(config, 0.5, bounded=False) == 0.5
