"""CUDA graphs without a GPU: what is recorded once follows masks, prices, switches and the guard's rungs.

Here the definition is recorded; under Triton's interpreter, in a process of its own, the kernels are.
"""

import os
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from recording import recorded

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.rows import StepRows
from lynx_moe.engines.vllm.step.tiers import Recorded
from lynx_moe.kernels import fused
from lynx_moe.policies import ModelShape, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
E, K, T = 24, 4, 8
SPEC = RouterSpec(num_experts=E, top_k=K)
SWITCHES = ("priced", "vanilla", "priced:price=0.3", "priced:price=0.005")
WISHES = (None, None, "exact", "fast", 0.02, "0.2", 0, "balanced")
PRICES = {"exact": 0.0, "fast": 0.1, 0.02: 0.02, "0.2": 0.2, 0: 0.0}


@pytest.fixture(autouse=True)
def _no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "fits", lambda logits_TE: False)  # compiled code of the host is in no graph


def make_plan(policy: str = "priced", **given: Any) -> Plan:
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=E, top_k=K, name="tiny")
    made = Plan(
        options=Options(policy=policy, **given), shape=shape, max_rows=16, device=torch.device("cpu"), graphs=True
    )
    made.layers.append(Layer(name="layers.0", spec=SPEC))
    made.seal()
    return made


class Graph:
    """A plan's decision of T rows, recorded in an idle run, as vLLM does."""

    def __init__(self, plan: Plan) -> None:
        self.plan, own = plan, select(torch.randn(T, E), SPEC)
        self.logits = torch.randn(T, E)
        self.own = Routing(own.ids.int(), own.weights.clone())
        plan.rows.idle()
        plan.begin_step()
        with recorded() as self.recording, torch.no_grad():
            self.final = plan.reroute(self.logits, self.own.weights, self.own.ids, 0)

    def step(self, rng: random.Random, wishes: list[Any], prompts: int) -> Routing:
        """A step of so many requests, the first ones with a prompt; what it should give."""
        names = [str(rng.random()) for _ in wishes]
        new = [
            SimpleNamespace(
                req_id=name,
                sampling_params=SimpleNamespace(extra_args={"lynx_moe": wish} if wish is not None else None),
            )
            for name, wish in zip(names, wishes, strict=True)
        ]
        self.plan.requests.update(
            SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set(self.plan.requests.specs))
        )
        decodes = np.arange(len(wishes)) >= prompts
        self.plan.rows.fill(
            decodes, np.ones(len(wishes), int), self.plan.requests.choices(names), self.plan.requests.asked
        )
        self.plan.begin_step()
        logits = torch.randn(T, E, generator=torch.Generator().manual_seed(rng.randrange(2**31))) * 2
        own = select(logits, SPEC)
        for buffer, now in zip(
            (self.logits, self.own.ids, self.own.weights), (logits, own.ids, own.weights), strict=True
        ):
            buffer.copy_(now)
        self.recording.replay()
        price = torch.zeros(T)
        price[: len(wishes)] = torch.tensor([PRICES.get(wish, self.plan.policy.asks) for wish in wishes])
        place = torch.arange(T)
        rows = Rows(valid=place < len(wishes), remap=(place >= prompts) & (place < len(wishes)), price=price)
        return make_policy("priced").route(logits, SPEC, rows, own)


def test_a_graph_follows_wishes_switches_and_rungs() -> None:
    """Steps of random requests, between which the operator switches, or a guard changes the rung."""
    rng, changed = random.Random(1), 0
    plan = make_plan()
    graph = Graph(plan)
    assert graph.final is not None
    assert (graph.recording.launches == 2) == INTERPRETED
    for _ in range(20 if INTERPRETED else 200):  # the interpreter takes a second a step
        turn = rng.random()
        if turn < 0.15:
            plan.set_policy(rng.choice(SWITCHES))
        elif turn < 0.3 and (milder := plan.policy.milder(SPEC)) is not None:
            plan.put(milder, [milder])  # as a guard does
        wishes = [rng.choice(WISHES) for _ in range(rng.randint(1, T))]
        expected = graph.step(rng, wishes, rng.choice((0, 0, 1)) if len(wishes) > 1 else 0)
        assert torch.equal(graph.final.ids.long(), expected.ids)
        torch.testing.assert_close(graph.final.weights, expected.weights, rtol=1e-6, atol=1e-38)
        changed += int((graph.final.weights[: len(wishes)] == 0).any())
    assert 5 < changed < 200


def test_the_recording_itself_would_show_what_python_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A price that is no buffer stays what it was when the graph was made."""
    plan, masks = make_plan(), StepRows.masks
    monkeypatch.setattr(StepRows, "masks", lambda rows, count: replace(masks(rows, count), price=None))
    graph = Graph(plan)
    plan.put(make_policy("priced:price=5"), [])
    expected = graph.step(random.Random(2), [None] * T, 0)
    assert not torch.equal(graph.final.ids.long(), expected.ids)


def test_what_needs_another_graph_is_refused_by_name() -> None:
    plan = make_plan()
    for spec in ("lynx", "priced:num_keep=4", "priced:norm=own"):
        with pytest.raises(
            Recorded, match=r"CUDA graphs have recorded 'priced'; allowed: that policy, another price of"
        ):
            plan.set_policy(spec)
    assert plan.set_policy("priced:price=0.2") == "priced:price=0.2"
    assert plan.set_policy("vanilla") == "vanilla"
    assert plan.describe()["recorded"] == "priced"
    assert plan.by_layer[0].spec == "priced"  # what is recorded decides, at prices of 0
    lynx = make_plan("lynx")
    with pytest.raises(Recorded, match="allowed: that policy and vanilla"):
        lynx.set_policy("priced")
    assert lynx.set_policy("vanilla") == "vanilla"


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_do_so_too() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "3 passed" in run.stdout
