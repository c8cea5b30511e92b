"""Two models in a process: each has its plan, its masks and its counts, whatever runs in between. Inputs are those that
vLLM's runners give: of the one for CPUs and V1, and of Model Runner V2, which only a GPU runs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model import drafting, hooks
from lynx_moe.engines.vllm.model.operator import decided, reroute
from lynx_moe.engines.vllm.step.drafter import DrafterPlan
from lynx_moe.engines.vllm.step.plan import Plan, active
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec, select

E, K = 60, 4
SPEC = RouterSpec(num_experts=E, top_k=K)
POLICY = "oea:k0=1"


def plans(verify: str = "exact", **given: Any) -> tuple[Plan, DrafterPlan]:
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=E, top_k=K, name="tiny")
    device = torch.device("cpu")
    options = Options(policy=POLICY, verify=verify)
    target = Plan(options=options, shape=shape, max_rows=64, device=device, num_drafts=3)
    drafter = DrafterPlan(options=options.of_drafter, shape=shape, max_rows=64, device=device, **given)
    for plan in (target, drafter):
        plan.layers.append(Layer(name="layers.0", spec=SPEC))
        plan.seal()
    target.drafter = drafter
    target.has_begun = True
    return target, drafter


def scheduled(requests: dict[str, tuple[bool, int, int]], wishes: dict[str, Any]) -> Any:
    """A scheduler's output of requests: name -> (past its prompt, rows, of these drafted)."""
    new = [
        SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=wishes.get(name))) for name in requests
    ]
    drafts = {name: [-1] * drafted for name, (_, _, drafted) in requests.items() if drafted}
    return SimpleNamespace(
        scheduled_new_reqs=new, finished_req_ids=set(), scheduled_spec_decode_tokens=drafts, num_scheduled_tokens=None
    )


def step(target: Plan, requests: dict[str, tuple[bool, int, int]], extra: int = 1, **wishes: Any) -> None:
    """What V1's runner, and that for CPUs, do before the target runs."""
    past, rows, _ = (np.array(column) for column in zip(*requests.values(), strict=True))
    runner = SimpleNamespace(
        get_model=lambda: SimpleNamespace(lynx_moe_plan=target),
        drafter=SimpleNamespace(net_num_new_slots_per_request=extra),
    )
    hooks._begin_step(runner, scheduled(requests, wishes), lambda: (past, rows), list(requests))


def forward(num_tokens: int, *, real: bool = True) -> None:
    metadata = {"layer": object()} if real else None
    drafting._forward(lambda *_, **__: None, metadata, None, num_tokens=num_tokens)


def layer(num_rows: int, *, drafts: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(the model's own ids, the final ones)."""
    logits = 2 * torch.randn(num_rows, E)
    own = select(logits, SPEC)
    given = (logits, own.weights, own.ids.int(), 0, None, drafts)
    ids = decided(*given)[1]
    assert torch.equal(ids, reroute(*given)[1])
    return own.ids, ids.long()


DECODING = {"a": (True, 4, 3), "b": (True, 2, 1), "c": (True, 1, 0)}


def test_a_drafter_s_pass_is_not_of_the_target_s_masks() -> None:
    """The target's step has one remappable row, the drafter's passes others; the target's plan is as it was before."""
    target, _ = plans()
    step(target, {**DECODING, "d": (True, 1, 0)})
    before = target.rows.remap.clone()
    own, final = layer(8, drafts=False)
    assert not torch.equal(own, final)
    for num_tokens in (12, 4, 4):  # a row more for each request, then a row each
        forward(num_tokens)
        own, final = layer(num_tokens, drafts=True)
        assert torch.equal(own, final)
        assert active() is target
        assert torch.equal(target.rows.remap, before)
    own, final = layer(8, drafts=False)
    assert torch.equal(own[:6], final[:6])  # rows that verify
    assert not torch.equal(own[6:], final[6:])
    stats = target.stats()
    assert stats.drafter is not None
    assert stats.steps == {"prefill": 0, "single": 0, "decode": 0, "mixed": 1}
    assert stats.drafter.steps == {"prefill": 0, "single": 0, "decode": 3, "mixed": 0}
    assert stats.drafter.layers[0].decode.rows == 20
    assert stats.drafter.mean_before == stats.drafter.mean_after > 0
    assert stats.verified == {
        **target.verified.told(),
        "rows": 6,
        "remappable_rows": 0,
    }
    assert stats.as_dict()["drafter"]["layers"][0]["decode"]["steps"] == 3


def test_statistics_start_anew_for_both() -> None:
    target, drafter = plans()
    step(target, DECODING)
    forward(10)
    layer(10, drafts=True)
    target.reset_stats()
    assert drafter.stats().layers[0].decode.before == 0


def test_in_draft_mode_the_drafter_alone_is_remapped_and_exact_requests_not_even_there() -> None:
    target, drafter = plans("draft")
    step(target, DECODING, b={"lynx_moe": "exact"})
    own, final = layer(7, drafts=False)
    assert torch.equal(own, final)
    forward(10)
    own, final = layer(10, drafts=True)
    exact_T = torch.tensor([False] * 5 + [True] * 3 + [False] * 2)
    assert torch.equal(own[exact_T], final[exact_T])
    assert not torch.equal(own, final)
    forward(3)
    assert drafter.rows.remap[:3].tolist() == [True, False, True]
    assert drafter.rows.kind is Kind.DECODE


def test_prompts_keep_their_routing_in_the_drafter_too() -> None:
    target, drafter = plans("draft")
    step(target, {"a": (True, 4, 3), "p": (False, 5, 0), "again": (True, 6, 0)})
    forward(18)
    assert drafter.rows.kind is Kind.MIXED
    assert drafter.rows.remap[:18].tolist() == [True] * 5 + [False] * 13
    own, final = layer(18, drafts=True)
    assert torch.equal(own[5:], final[5:])


def test_passes_of_rows_that_are_not_known_change_nothing() -> None:
    """Dummy runs, passes before any step, rows that were taken out (disable_padded_drafter_batch)."""
    target, drafter = plans("draft")
    step(target, DECODING)
    for num_tokens, real in ((9, True), (64, False), (3, True)):
        forward(num_tokens, real=real)
        own, final = layer(num_tokens, drafts=True)
        assert torch.equal(own, final)
    assert sum(drafter.steps.values()) == 0


def test_eagle_and_mtp_take_the_target_s_rows_and_padding_is_no_row() -> None:
    target, drafter = plans("draft")
    step(target, DECODING, extra=0)
    forward(8)  # padded for a graph
    assert drafter.rows.num_rows == 7
    masks = drafter.rows.masks(8)
    assert masks is not None
    assert masks.valid is not None
    assert masks.valid.tolist() == [True] * 7 + [False]


def test_the_rows_that_a_drafter_adds_are_known_by_either_runner() -> None:
    v1 = SimpleNamespace(drafter=SimpleNamespace(net_num_new_slots_per_request=3))
    v2 = SimpleNamespace(speculator=SimpleNamespace(num_extra_query_per_req=1))
    none = (SimpleNamespace(), SimpleNamespace(drafter=None))
    assert [hooks._extra_rows(runner) for runner in (v1, v2, *none)] == [3, 1, 0, 0]


def test_model_runner_v2_eager_is_told_pass_by_pass() -> None:
    target, drafter = plans("draft")
    past, rows = np.array([False, False]), np.array([4, 1], dtype=np.int32)
    batch = SimpleNamespace(num_reqs=2, is_prefilling_np=past, num_scheduled_tokens=rows, req_ids=["a", "b"])
    runner = SimpleNamespace(
        get_model=lambda: SimpleNamespace(lynx_moe_plan=target),
        speculator=SimpleNamespace(num_extra_query_per_req=1),
    )
    hooks._prepare_inputs_v2(lambda *_: batch, runner, scheduled({"a": (True, 4, 3), "b": (True, 1, 0)}, {}))
    for num_tokens, rows_seen in ((7, 7), (2, 2)):
        forward(num_tokens)
        assert drafter.rows.num_decode_rows == rows_seen
        own, final = layer(num_tokens, drafts=True)
        assert not torch.equal(own, final)


def test_model_runner_v2_whose_graphs_hold_whole_passes_is_left_alone_and_counts_none() -> None:
    target, drafter = plans(replayed=True)
    past, rows = np.array([False, False]), np.array([4, 1], dtype=np.int32)
    batch = SimpleNamespace(num_reqs=2, is_prefilling_np=past, num_scheduled_tokens=rows, req_ids=["a", "b"])
    runner = SimpleNamespace(get_model=lambda: SimpleNamespace(lynx_moe_plan=target))
    output = scheduled({"a": (True, 4, 3), "b": (True, 1, 0)}, {})
    hooks._prepare_inputs_v2(lambda *_: batch, runner, output)
    assert target.verified.rows == 4
    assert target.rows.remap[:5].tolist() == [False] * 4 + [True]
    forward(5)
    own, final = layer(5, drafts=True)
    assert torch.equal(own, final)
    assert sum(drafter.steps.values()) == 0


def test_the_server_s_policy_is_switched_where_it_acts() -> None:
    target, drafter = plans("draft")
    assert target.describe()["policy"] == POLICY
    assert target.governed is drafter
    assert target.governed.set_policy("oea:k0=2") == "oea:k0=2"
    assert (target.policy.spec, target.describe()["policy"]) == ("vanilla", "oea:k0=2")
    target, drafter = plans()
    assert target.governed is target
    assert drafter.policy.spec == "vanilla"


def test_without_a_drafter_nobody_is_asked() -> None:
    target, _ = plans()
    target.drafter = None
    step(target, DECODING)
    forward(10)
    with pytest.raises(RuntimeError, match="no vLLM engine"):
        active(drafts=True)
