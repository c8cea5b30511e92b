"""What became of drafts: told by vLLM's scheduler, carried to the workers by the next step, learnt by depth."""

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.spec_decode.ngram_proposer_gpu import update_scheduler_for_invalid_drafts

from lynx_moe.engines.vllm import plugin
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model import forward, hooks
from lynx_moe.engines.vllm.step import verified
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.verified import PRIOR, TOLD, Verified
from lynx_moe.policies import ModelShape

plugin._wrap_core()


def scheduler(configured: bool = True) -> Any:
    extra = {"lynx_moe": {"policy": "priced"}} if configured else None
    return SimpleNamespace(vllm_config=SimpleNamespace(additional_config=extra), log_stats=False, num_spec_tokens=3)


def told(*outcomes: tuple[int, int]) -> Any:
    return SimpleNamespace(**{TOLD: list(outcomes)})


def test_a_scheduler_s_outcomes_travel_with_its_next_plan() -> None:
    made, stats = scheduler(), Scheduler.make_spec_decoding_stats
    for drafted, accepted, invalid in ((3, 2, None), (3, 0, {"x": 1}), (2, 2, {"a": 1}), (0, 0, None)):
        stats(
            made,
            None,
            num_draft_tokens=drafted,
            num_accepted_tokens=accepted,
            num_invalid_spec_tokens=invalid,
            request_id="a",
        )
    plans = [SimpleNamespace(), SimpleNamespace()]
    for plan in plans:
        verified.hand_over(lambda _, plan=plan: plan, made)
    assert getattr(plans[0], TOLD) == [(3, 2), (3, 0), (1, 1)]
    assert not hasattr(plans[1], TOLD)  # each is told once
    inert = scheduler(configured=False)
    stats(inert, None, num_draft_tokens=3, num_accepted_tokens=3, num_invalid_spec_tokens=None, request_id="a")
    assert TOLD not in inert.__dict__


def test_vllm_s_plan_takes_them_along() -> None:
    output = SchedulerOutput.make_empty()
    setattr(output, TOLD, [(3, 1)])
    seen = Verified(3)
    seen.add(pickle.loads(pickle.dumps(output)))  # as it reaches workers in other processes
    assert seen.told()["drafted"] == [1, 1, 1]
    assert seen.told()["accepted"] == [1, 0, 0]


def test_chances_are_learnt_by_depth_and_never_rise() -> None:
    seen = Verified(3)
    assert seen.chances.tolist() == pytest.approx([1, PRIOR, PRIOR**2, PRIOR**3])
    for _ in range(2000):
        seen.add(told((3, 3), (3, 1), (3, 1), (1, 0)))  # 3 of 4 accept the first, 1 of 3 then the second, all the third
    assert seen.chances.tolist() == pytest.approx([1, 0.75, 0.25, 0.25], abs=0.02)
    assert (np.diff(seen.chances) <= 0).all()
    before = seen.chances[1]
    for _ in range(2000):
        seen.add(told((3, 0)))
    assert 0 < seen.chances[3] <= seen.chances[1] < 0.1 < before  # what it learnt long ago is forgotten


def test_sums_are_of_the_drafts_and_start_anew_while_chances_stay() -> None:
    seen = Verified(2)
    assert seen.told()["accepted_length"] is None
    seen.add(told((2, 2), (2, 0), (5, 4), (1, 1)))  # more than was announced counts as far as that goes
    found = seen.told()
    assert (found["drafts"], found["drafted"], found["accepted"]) == (4, [4, 3], [3, 2])
    assert found["accepted_length"] == pytest.approx(1 + 5 / 4)
    chances = seen.chances.tolist()
    seen.reset()
    assert seen.told()["drafts"] == 0
    assert seen.chances.tolist() == chances


def test_a_server_that_drafts_nothing_has_one_depth() -> None:
    assert Verified(0).chances.tolist() == [1]


class CopyingRunner:
    """vLLM's V1 runner as far as n-grams on a GPU need it: `execute_model` makes a copy of the scheduler's output and
    takes away the drafts that the device did not find."""

    def __init__(self, plan: Plan, names: list[str], found: list[int]) -> None:
        self.model = SimpleNamespace(lynx_moe_plan=plan)
        self.names, self.found = names, found
        self.execute_model_state = None

    def get_model(self) -> Any:
        return self.model

    def execute_model(self, output: SchedulerOutput) -> None:
        copied = {
            name: getattr(output, name).copy() for name in ("num_scheduled_tokens", "scheduled_spec_decode_tokens")
        }
        output = replace(output, **copied)
        event, index = SimpleNamespace(synchronize=lambda: None), {name: n for n, name in enumerate(self.names)}
        update_scheduler_for_invalid_drafts(event, torch.tensor(self.found), output, index)
        if output.total_num_scheduled_tokens:
            scheduled_R = np.array([output.num_scheduled_tokens[name] for name in self.names])
            hooks._begin_step(self, output, lambda: (np.ones(len(self.names), dtype=bool), scheduled_R), self.names)


def verifying(names: list[str]) -> SchedulerOutput:
    output = SchedulerOutput.make_empty()
    output.scheduled_cached_reqs.req_ids = names
    output.scheduled_spec_decode_tokens = {name: [-1, -1, -1] for name in names}
    output.num_scheduled_tokens = dict.fromkeys(names, 4)
    output.total_num_scheduled_tokens = 4 * len(names)
    return output


def test_ngrams_on_a_gpu_verify_what_the_device_found_and_are_told_of_nonetheless() -> None:
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=8, top_k=2, name="tiny")
    options = Options(policy="priced", verify="remap")
    plan = Plan(options=options, shape=shape, max_rows=16, device=torch.device("cpu"), num_drafts=3)
    plan.has_begun = True
    runner = CopyingRunner(plan, ["a", "b", "c"], found=[3, 1, 0])
    output = verifying(runner.names)
    setattr(output, TOLD, [(3, 2), (3, 0)])
    forward.execute(CopyingRunner.execute_model, runner, output)
    assert plan.verified.told()["drafted"] == [2, 2, 2]
    assert plan.verified.told()["accepted"] == [1, 1, 0]
    assert (plan.rows.num_rows, plan.verified.rows, plan.verified.remappable) == (7, 6, 6)
    assert plan.rows.depth[:7].tolist() == [0, 1, 2, 3, 0, 1, 0]  # the last one decodes
    assert plan.rows.request[:7].tolist() == [0, 0, 0, 0, 1, 1, 2]
    last = SchedulerOutput.make_empty()
    setattr(last, TOLD, [(3, 3)])
    forward.execute(CopyingRunner.execute_model, runner, last)  # no request is left
    assert plan.verified.told()["accepted"] == [2, 2, 1]
    assert plan.verified.rows == 6
