"""Steps that verify drafts, on the seam: forward batches as SGLang's sources make them, without SGLang."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang_seam import SHAPE, SPEC, E, K, Req

from lynx_moe.engines.sglang.front.metrics import told
from lynx_moe.engines.sglang.launch.options import Options
from lynx_moe.engines.sglang.model import hooks
from lynx_moe.engines.sglang.step import plan as plans
from lynx_moe.engines.sglang.step.plan import Plan
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.routing import select

WIDTH = 4  # rows of a request: its next token and three drafted ones
REQUESTS = 3


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    kept = [*plans._active]
    yield
    plans._active[:] = kept


def make(policy: str = "priced", verify: str = "exact", *, graphs: bool = False) -> Plan:
    options = Options(policy=policy, verify=verify)
    plan = Plan(options, SHAPE, 64, torch.device("cpu"), graphs=graphs, speculates=True)
    plan.layers.append(Layer(name="model.layers.0.mlp", spec=SPEC))
    plan.seal()
    plans.activate(plan)
    return plan


def step(plan: Plan, wishes: list[Any], width: int = WIDTH, mode: str = "TARGET_VERIFY", rows: int = 0) -> Any:
    """A step of these requests through the seam: own and final choice of `rows` rows, padding of a graph included."""
    reqs = [Req(str(number), wish) for number, wish in enumerate(wishes)]
    for req in reqs:
        plan.arrive(req)
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(name=mode),
        rids=[req.rid for req in reqs],
        input_ids=torch.zeros(len(reqs) * width, dtype=torch.int64),
        extend_seq_lens_cpu=[4] * len(reqs),
        extend_prefix_lens_cpu=[0] * len(reqs),
    )
    hooks.begin(SimpleNamespace(is_draft_worker=False), batch)
    logits = 2 * torch.randn(rows or len(reqs) * width, E, generator=torch.Generator().manual_seed(1))
    own = select(logits, SPEC)
    return own, plan.reroute(0, logits, own) or own


def same(own: Any, final: Any, part: slice = slice(None)) -> bool:
    return torch.equal(own.ids[part], final.ids[part]) and torch.equal(own.weights[part], final.weights[part])


def test_rows_that_verify_are_exact_and_counted_apart() -> None:
    plan = make()
    own, final = step(plan, [None] * REQUESTS)
    assert same(own, final)
    assert plan.steps["prefill"] == 1
    assert plan.stats().verified == {"rows": WIDTH * REQUESTS, "remappable_rows": 0}
    found = {labels[0]: value for name, labels, value in told(plan) if name == "lynx_moe_verified_rows"}
    assert found == {"remappable": 0, "exact": WIDTH * REQUESTS}


def test_where_nothing_was_drafted_requests_decode() -> None:
    """An adaptive drafter stops in large batches: then a step verifies one row of each request."""
    plan = make()
    own, final = step(plan, [None] * REQUESTS + ["exact"], width=1)
    assert not same(own, final)
    assert same(own, final, slice(REQUESTS, None)), "and who asks to be exact is"
    assert plan.steps["decode"] == 1
    assert plan.stats().verified == {"rows": 0, "remappable_rows": 0}


def test_remap_lets_the_policy_act_on_rows_that_verify() -> None:
    plan = make(verify="remap")
    wishes = [None, "exact", {"lynx_moe_verify": "exact"}]
    own, final = step(plan, wishes)
    assert not same(own, final, slice(0, WIDTH))
    assert same(own, final, slice(WIDTH, None)), "neither exact requests nor who has its drafts verified exactly"
    assert plan.stats().verified == {"rows": WIDTH * REQUESTS, "remappable_rows": WIDTH}
    (layer,) = plan.stats().layers
    assert layer.mixed.after < layer.mixed.before


def test_a_request_may_ask_for_remap_where_the_server_verifies_exactly() -> None:
    plan = make()
    own, final = step(plan, [{"lynx_moe_verify": "remap"}, None, {"lynx_moe": "exact", "lynx_moe_verify": "remap"}])
    assert not same(own, final, slice(0, WIDTH))
    assert same(own, final, slice(WIDTH, None))


@pytest.mark.parametrize("verify", ["exact", "remap"])
def test_a_graph_s_buffers_say_whose_rows_verify(verify: str) -> None:
    """A graph of 16 rows replays a step of 12: what it recorded reads these buffers, and nothing else of the step."""
    plan = make(verify=verify, graphs=True)
    buffers = {name: getattr(plan.rows, name) for name in ("valid", "remap", "request", "depth")}
    step(plan, [None] * REQUESTS, rows=16)
    live = WIDTH * REQUESTS
    assert buffers["valid"].tolist() == [True] * live + [False] * (64 - live)
    assert buffers["remap"].any() == (verify == "remap")
    assert buffers["request"][:live].tolist() == [0] * WIDTH + [1] * WIDTH + [2] * WIDTH
    assert buffers["depth"][:live].tolist() == [0, 1, 2, 3] * REQUESTS
    masks = plan.rows.masks(16)
    assert masks is not None
    replayed = plan.by_layer[0].decide(2 * torch.randn(16, E), SPEC, masks)
    assert (replayed.weights[live:] == 0).all()
    assert set(replayed.ids[live:].flatten().tolist()) <= set(replayed.ids[:live].flatten().tolist())
    assert all(buffers[name] is getattr(plan.rows, name) for name in buffers), "they stay where they are"


def test_passes_of_a_model_that_drafts_are_no_steps_and_its_layers_are_not_the_policy_s() -> None:
    """In SGLang they run in the same process, between two steps, by a model runner of their own."""
    plan = make(verify="remap")
    target, drafter = SimpleNamespace(), SimpleNamespace()
    plan.numbers[id(target)] = 0
    step(plan, [None] * REQUESTS)
    before = plan.stats()
    for mode in ("DECODE", "DRAFT_EXTEND_V2", "TARGET_VERIFY", "EXTEND"):
        batch = SimpleNamespace(forward_mode=SimpleNamespace(name=mode), rids=["0"] * REQUESTS)
        hooks.begin(SimpleNamespace(is_draft_worker=True), batch)
    logits = torch.randn(WIDTH * REQUESTS, E)
    own = select(logits, SPEC)
    given = {"topk_ids": own.ids.int(), "topk_weights": own.weights, "router_logits": logits, "layer_id": 0}
    assert hooks.change(**given, topk_config=drafter) is None
    assert plan.stats() == before
    changed = hooks.change(**given, topk_config=target)
    assert changed is not None, "and the step that was begun is as it was"
    assert changed[1]["topk_ids"].shape == (WIDTH * REQUESTS, K)


def test_a_model_that_drafts_gets_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LYNX_MOE_SGLANG", '{"policy": "priced"}')
    plan = make()
    drafter = object()
    assert hooks.build(lambda config: drafter, SimpleNamespace(is_draft_model=True)) is drafter
    assert plans.active() is plan
