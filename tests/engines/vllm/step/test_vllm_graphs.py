"""CUDA graphs without a GPU: what is recorded once follows masks, prices, switches and the guard's rungs.

Here the definition is recorded; under Triton's interpreter, in a process of its own, the kernels are.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from recording import recorded

from lynx_moe.control.guard import Guard
from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.step import tiers
from lynx_moe.engines.shared.step.rows import StepRows
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.kernels import fused
from lynx_moe.lab.gpu.checks import prices
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
E, K, T = 24, 4, 8
SPEC = RouterSpec(num_experts=E, top_k=K)


@pytest.fixture(autouse=True)
def _no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "fits", lambda logits_TE: False)  # compiled code of the host is in no graph


def plan_of(policy: str = "priced", **given: Any) -> Plan:
    return prices.make_plan(policy, E, K, torch.device("cpu"), **given)


class Recorded:
    """Records as a graph does, for `prices.Followed`."""

    def __call__(self, decide: prices.Decide) -> tuple[Routing, Callable[[], None]]:
        with recorded() as self.recording, torch.no_grad():
            final = decide()
        return final, self.recording.replay


def test_a_graph_follows_wishes_switches_and_rungs() -> None:
    """Steps of random requests, between which the operator switches, or a guard changes the rung."""
    rng, changed = random.Random(1), 0
    plan, capture = plan_of(), Recorded()
    graph = prices.Followed(plan, T, capture)
    assert (capture.recording.launches == 2) == INTERPRETED
    for _ in range(20 if INTERPRETED else 200):  # the interpreter takes a second a step
        prices.turn(plan, rng)
        wishes, prompts = prices.draw(rng, T)
        expected = graph.step(rng, wishes, prompts)
        assert prices.difference(graph.final, expected, T) == ""
        changed += int((graph.final.weights[: len(wishes)] == 0).any())
        assert graph.shadow(expected, T) == ""
    assert 5 < changed < 200


def test_a_guard_s_samples_are_those_of_fresh_decisions_and_its_rungs_need_no_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sharp logits, of which the policy drops much, then flat ones. Nothing is taken of the first step at a new rung,
    whose rows ask what the old one did, nor while the rung is vanilla and requests bring wishes."""
    samples: list[float] = []  # at this rung and at the one above, in turn; where there is none, the same again
    expected: list[float] = []
    add = Guard.add

    def spy(guard: Guard, figure: str, now: float, above: float | None) -> Any:
        samples.extend((now, now if above is None else above))
        return add(guard, figure, now, above)

    monkeypatch.setattr(Guard, "add", spy)
    rng, plan, rungs = random.Random(4), plan_of(guard=prices.GUARD), [0]
    graph = prices.Followed(plan, T, Recorded())
    for number in range(10 if INTERPRETED else 80):
        graph.spread = 2.0 if number < 40 else 0.1
        wishes = [None if number % 3 else rng.choice((None, 0.02, "exact")) for _ in range(rng.randint(1, T))]
        final = graph.step(rng, wishes, int(number % 5 == 0 and len(wishes) > 1))
        assert prices.difference(graph.final, final, T) == ""
        assert plan.watch is not None
        rungs.append(plan.watch.guard.rung)
        pair = graph.sample(final, wishes)
        assert (pair is None) <= (rungs[-1] != rungs[-2] or not graph.rows.remap.any() or any(wishes))
        assert pair is None or rungs[-1] == rungs[-2]
        if pair is not None:
            expected.extend((pair[0], pair[1] if rungs[-1] else pair[0]))
    plan.rows.idle()
    plan.begin_step()  # the last one sets out
    assert samples == pytest.approx(expected[: len(samples)], rel=1e-5, abs=1e-7)
    assert len(expected) - 2 <= len(samples) <= len(expected)
    changes = plan.watch.guard.changes
    assert changes["back_off"] > 0
    assert changes["recover"] > 0 or INTERPRETED
    assert plan.policy_changes["guard"] == changes["back_off"] + changes["recover"]


def test_what_a_guard_cannot_do_under_graphs_is_refused_and_unreachable_rungs_are_left_out() -> None:
    plan = plan_of()
    with pytest.raises(ValueError, match=r"have recorded no guard's figure; give a guard when the engine starts"):
        plan.set_guard(prices.GUARD)
    with pytest.raises(ValueError, match="max_error runs a layer's experts once more"):
        plan_of(guard=GuardOptions(max_error=0.1))
    plan = plan_of(guard=prices.GUARD)
    with pytest.raises(ValueError, match=r"have recorded figures of layers=1; .* but not its layers"):
        plan.set_guard(replace(prices.GUARD, layers=0.5))
    plan.set_guard(None)
    plan.set_guard(replace(prices.GUARD, max_mass_lost=0.5))
    assert plan.watch is not None
    assert [rung.spec for rung, _ in plan.watch.ladder] == [
        "priced",
        "priced:price=0.0075",
        "priced:price=0.001875",
        "vanilla",
    ]
    with pytest.raises(tiers.Recorded, match="cannot switch to 'lynx'"):
        plan.set_guard(replace(prices.GUARD, ladder=("lynx",)))
    lynx = plan_of("lynx", guard=prices.GUARD)
    assert lynx.watch is not None
    assert [rung.spec for rung, _ in lynx.watch.ladder] == ["lynx", "vanilla"]


def test_the_recording_itself_would_show_what_python_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that is no buffer stays what it was when the graph was made."""
    plan, masks = plan_of(), StepRows.masks
    monkeypatch.setattr(StepRows, "masks", lambda rows, count: replace(masks(rows, count), price=None))
    graph = prices.Followed(plan, T, Recorded())
    plan.put(make_policy("priced:price=5"), [])
    expected = graph.step(random.Random(2), [None] * T, 0)
    assert "other experts in rows" in prices.difference(graph.final, expected, T)


def test_what_needs_another_graph_is_refused_by_name() -> None:
    plan = plan_of()
    for spec in ("lynx", "priced:num_keep=4", "priced:norm=own"):
        with pytest.raises(
            tiers.Recorded, match=r"CUDA graphs have recorded 'priced'; allowed: that policy, another price of"
        ):
            plan.set_policy(spec)
    assert plan.set_policy("priced:price=0.2") == "priced:price=0.2"
    assert plan.set_policy("vanilla") == "vanilla"
    assert plan.describe()["recorded"] == "priced"
    assert plan.by_layer[0].spec == "priced"  # what is recorded decides, at prices of 0
    lynx = plan_of("lynx")
    with pytest.raises(tiers.Recorded, match="allowed: that policy and vanilla"):
        lynx.set_policy("priced")
    assert lynx.set_policy("vanilla") == "vanilla"


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_do_so_too() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "5 passed" in run.stdout
