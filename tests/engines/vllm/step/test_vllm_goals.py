"""The bound and the objective of a plan, changed while it runs: what is kept, what is refused, what is told."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import told

from lynx_moe.control.latency import WINDOW
from lynx_moe.control.options import GuardOptions
from lynx_moe.control.tuned import Tuned
from lynx_moe.engines.shared.pace import Timed
from lynx_moe.engines.shared.switching import Switch
from lynx_moe.engines.shared.tell.exporter import DIRECTORY
from lynx_moe.engines.vllm.front import control
from lynx_moe.engines.vllm.launch.goals import Unable, unable
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.shadows.passes import Shadows
from lynx_moe.engines.vllm.step.shadows.sample import Effect, Sample


def made(policy: str | None = "priced", **options: Any) -> Plan:
    """A plan that can measure the KL."""
    plan = told.make_plan(**options)
    plan.shadows = Shadows(1 / 256)
    if policy is not None:
        plan.set_policy(policy)
    return plan


def switch(plan: Plan, policy: str | None = None, **goals: Any) -> str:
    return plan.switch(Switch(policy=policy, goals=goals))


def test_goals_come_change_and_go_while_the_policy_stays() -> None:
    plan = made()
    assert (plan.bounded, plan.pace) == (None, None)
    assert switch(plan, slo_tpot_ms=50, max_kl=0.01) == plan.policy.spec
    bounded, pace = plan.bounded, plan.pace
    assert bounded is not None
    assert pace is not None
    bounded.bound.of(16).level = 20
    for _ in range(WINDOW):
        pace.hear(Timed(16, 0, 0.08))
    share = pace.latency.of(16).share
    assert share > 0
    switch(plan, slo_tpot_ms=60)
    assert plan.pace is pace
    assert plan.bounded is bounded
    assert (pace.latency.goal_ms, pace.latency.of(16).share) == (60, share)
    assert bounded.bound.of(16).level == 20
    switch(plan, max_kl=0.001)
    assert plan.bounded is bounded
    assert 0 < bounded.bound.of(16).price <= bounded.bound.prices[20] / 10
    assert bounded.state()["max_kl"] == 0.001
    switch(plan, slo_tpot_ms=None)
    assert (plan.pace, plan.bounded) == (None, bounded)
    switch(plan, max_kl=None)
    assert plan.bounded is None
    switch(plan, max_kl=0.001)
    assert plan.bounded is not None
    assert plan.bounded.number > bounded.number  # so late samples are not taken for its own
    assert plan.bounded.bound.of(16).level == 0


def test_another_policy_begins_anew_under_the_goals_that_stand() -> None:
    plan = made()
    switch(plan, slo_tpot_ms=50)
    first = plan.pace
    switch(plan, "vanilla")
    assert plan.pace is None
    switch(plan, "priced:price=0.1")
    assert plan.pace is not None
    assert plan.pace is not first
    assert plan.pace.latency.goal_ms == 50
    switch(plan, "lynx", slo_tpot_ms=None, max_kl=0.02)
    assert plan.pace is None
    assert plan.bounded is not None
    assert plan.bounded.bound.most == 0.02
    assert plan.describe() | {"max_kl": 0.02, "slo_tpot_ms": None} == plan.describe()


def test_a_bound_takes_the_place_of_backing_off_which_ends_with_it() -> None:
    plan = made(policy=None, back_off_kl=0.02)
    plan.aim(anew=True)
    first = plan.bounded
    assert first is not None
    assert not first.bound.seeks
    switch(plan, slo_tpot_ms=50)
    switch(plan, max_kl=None)  # none is on
    assert plan.bounded is first
    assert first.bound.most == 0.02
    switch(plan, max_kl=0.01)
    assert plan.bounded is not None
    assert plan.bounded.bound.seeks
    assert plan.bounded.number > first.number
    switch(plan, max_kl=None)
    assert plan.bounded is None


def test_what_is_told_changes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    plan = made()
    writer = told.writer(plan)
    writer.tell()
    assert not told.read().values("slo_share", "batch")
    switch(plan, slo_tpot_ms=50, max_kl=0.01)
    writer.tell()
    assert (told.read().total("slo_tpot_seconds"), told.read().total("max_kl")) == (0.05, 0.01)
    switch(plan, slo_tpot_ms=40)
    writer.tell()
    assert told.read().total("slo_tpot_seconds") == 0.04


@pytest.mark.parametrize(
    ("goals", "reason"),
    [
        ({"slo_tpot_ms": 0}, "slo_tpot_ms=0 must be a number of milliseconds above 0, such as 50"),
        ({"slo_tpot_ms": "fast"}, "slo_tpot_ms='fast' must be a number"),
        ({"slo_tpot_ms": True}, "slo_tpot_ms=True must be a number"),
        ({"slo_tpot_ms": float("nan")}, "must be a number"),
        ({"max_kl": 2}, "max_kl=2 must be a number of nats from 1e-05 to 1"),
        ({"max_kl": 0.01, "slo_tpot_ms": -1}, "slo_tpot_ms=-1 must be"),
        ({"slo_tpot": 5}, "'slo_tpot' cannot be changed; allowed: policy, max_kl, slo_tpot_ms"),
        ({"policy": "vanilla", "slo_tpot_ms": 5}, "moves the prices, and policy='vanilla' changes nothing"),
        ({"policy": "linx", "slo_tpot_ms": 5}, "did you mean 'lynx'"),
    ],
)
def test_what_is_bad_is_refused_and_nothing_changes(goals: dict[str, Any], reason: str) -> None:
    plan = made()
    before = plan.describe()
    with pytest.raises(ValueError, match=reason) as caught:
        switch(plan, **goals)
    assert "\n" not in str(caught.value)
    assert plan.describe() == before
    assert (plan.bounded, plan.pace) == (None, None)


def test_what_else_moves_the_policy_excludes_them() -> None:
    plan = made()
    plan.set_guard(GuardOptions(max_mass_lost=0.1))
    with pytest.raises(ValueError, match="slo_tpot_ms=50 moves the prices, and a guard moves the policy too"):
        switch(plan, slo_tpot_ms=50)
    switch(plan, slo_tpot_ms=None)  # what is off may be turned off
    plan = made(policy=None, shadow=0)
    with pytest.raises(ValueError, match=r"max_kl=0.01 .*, and without shadow steps .shadow=0. nothing measures it"):
        switch(plan, max_kl=0.01)
    plan = made(policy=None, verify="draft")
    with pytest.raises(ValueError, match="verify='draft' leaves the served model exact"):
        switch(plan, max_kl=0.01)


def test_a_guard_is_refused_beside_what_moves_the_policy_already() -> None:
    """Also where the goal is at rest under `vanilla`: with the next policy both would move it."""
    plan = made()
    for goals, reason in (({"max_kl": 0.01}, "max_kl=0.01 bounds"), ({"slo_tpot_ms": 50}, "slo_tpot_ms=50 moves")):
        switch(plan, **goals)
        for policy in ("priced", "vanilla"):
            switch(plan, policy)
            with pytest.raises(ValueError, match=f"{reason} .*, and a guard moves the policy too; leave out either"):
                plan.set_guard(GuardOptions(max_mass_lost=0.1))
        assert plan.watch is None
        switch(plan, "priced", **dict.fromkeys(goals))
    plan.set_guard(GuardOptions(max_mass_lost=0.1))
    assert plan.watch is not None
    tuned = Tuned(model={}, max_kl=0.01, batches={"1": "vanilla", "2-4": "priced:price=0.3"})
    with pytest.raises(ValueError, match="tuned says which policy acts, and guard would move it; leave out either"):
        made(policy=None, tuned=tuned).set_guard(GuardOptions(max_mass_lost=0.1))
    made(tuned=tuned).set_guard(GuardOptions(max_mass_lost=0.1))  # the operator's policy is on since
    with pytest.raises(ValueError, match="a guard watches the layers that verify='draft' leaves alone"):
        made(policy=None, verify="draft").set_guard(GuardOptions(max_mass_lost=0.1))
    with pytest.raises(ValueError, match="guard: max_kl is measured in shadow steps, and shadow=0"):
        made(policy=None, shadow=0).set_guard(GuardOptions(max_kl=0.1))


def sampled(at: Any, kl: float) -> Sample:
    """16 rows that follow the server's policy."""
    return Sample(batch=16, at=at, server=Effect(16, 16 * kl), request=Effect(), above=None, seconds=0.0)


def test_a_guard_takes_the_place_of_backing_off_and_hears_what_is_measured() -> None:
    plan = made(policy=None, back_off_kl=0.02)
    plan.aim(anew=True)
    plan.set_guard(GuardOptions(max_kl=0.1, window=16))
    assert plan.bounded is None
    assert plan.describe()["back_off_kl"] is None
    assert plan.watch is not None
    at, _ = plan.watch.trials()
    plan.hear(SimpleNamespace(lynx_moe_shadows=[sampled(at, 0.5)]))
    assert plan.watch.guard.rung == 1
    plan.set_guard(None)
    assert plan.bounded is None


def test_rows_that_ask_nothing_are_not_told_of_as_served_without_harm() -> None:
    """While a bound seeks its first price one step in four is looked at, and all of these are exact."""
    plan = made(shadow=1)
    switch(plan, max_kl=0.01)
    assert plan.bounded is not None
    assert plan.shadows is not None
    seen = {}
    for level in (0, 9):
        plan.bounded.bound.of(8).level = level
        for _ in range(4):
            told.step(plan, [True] * 8, [1] * 8)
        seen[level] = plan.shadows.exact
    assert seen == {0: True, 9: False}
    sums = plan.shadows.sums
    sums.add(replace(sampled(None, 0.0), exact=True, request=Effect(2, 0.5)))
    assert [(one["policy"], one["rows"], one["kl"]) for one in sums.told()["batches"]] == [("request", 2, 0.25)]
    sums.add(sampled(None, 0.5))
    assert [(one["policy"], one["rows"]) for one in sums.told()["batches"]] == [("request", 2), ("server", 16)]
    assert sums.steps == 2


def test_late_samples_are_of_nobody_else() -> None:
    """A shadow step's sample is heard with the next step, before which the policy, the guard and the bound may change:
    whoever asks then neither takes it for its own nor stumbles over it."""
    plan = made()
    guard = GuardOptions(max_kl=0.1, window=16, ladder=())
    plan.set_guard(guard)
    assert plan.watch is not None
    first, _ = plan.watch.trials()
    plan.set_policy("priced:price=0.1")
    plan.watch.hear(sampled(first, 0.5))
    assert plan.watch.guard.samples == {"kl": 0}
    own, _ = plan.watch.trials()
    plan.watch.hear(sampled(own, 0.5))
    changed, _ = plan.watch.trials()
    assert len({first, own, changed}) == 3
    plan.set_guard(guard)
    plan.watch.hear(sampled(own, 0.5))
    assert plan.watch.guard.samples == {"kl": 0}
    plan.set_guard(None)
    switch(plan, max_kl=0.01)
    assert plan.bounded is not None
    bucket = plan.bounded.bound.of(16)
    for at in (first, own, changed, None):
        plan.bounded.hear(sampled(at, 0.5))
    assert (bucket.now.rows, bucket.spike) == (0, 0)
    mine, _ = plan.bounded.trials(np.ones(16, np.float32), np.ones(16, bool), 16)
    plan.bounded.hear(sampled(mine, 0.5))
    assert bucket.spike > 0


def test_what_an_engine_cannot_follow_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from lynx_moe.engines.vllm.launch import twice

    config = SimpleNamespace(use_v2_model_runner=True)
    monkeypatch.setattr(twice, "refusal", lambda vllm_config: "Mamba keeps a state")
    assert unable(config, 0.0) == {
        "max_kl": "max_kl runs the model twice on one step, and Mamba keeps a state",
        "slo_tpot_ms": "slo_tpot_ms is told to all workers by the V1 model runner; use VLLM_USE_V2_MODEL_RUNNER=0",
    }
    monkeypatch.setattr(twice, "refusal", lambda vllm_config: None)
    config.use_v2_model_runner = False
    assert unable(config, 1 / 256) == {}
    plan = made()
    plan.unable = unable(config, 0.0)
    with pytest.raises(Unable, match="max_kl is measured in shadow steps, and this engine was started without them"):
        switch(plan, max_kl=0.01)
    switch(plan, max_kl=None, slo_tpot_ms=50)
    assert plan.pace is not None


NESTED = pytest.param(b"[" * 100_000, id="nested")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"policy": 3}', b'{"policy": null}', b"\xff", NESTED])
def test_a_body_that_is_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r'^the body must be a JSON object {"policy": "SPEC"}, {"slo_tpot_ms": 25}'):
        Switch.of(body)


def test_a_body_says_what_changes() -> None:
    asked = Switch.of(b'{"policy": "lynx", "max_kl": null, "slo_tpot_ms": 25}')
    assert asked == Switch(policy="lynx", goals={"max_kl": None, "slo_tpot_ms": 25})
    assert Switch.of(b'{"slo_tpot_ms": 25}') == Switch(goals={"slo_tpot_ms": 25})
    assert asked.body == {"policy": "lynx", "max_kl": None, "slo_tpot_ms": 25}


def test_numbers_that_no_message_between_processes_can_hold_are_as_good_as_any_large_one() -> None:
    goals = Switch.of(b'{"slo_tpot_ms": %s, "max_kl": %s}' % (b"9" * 30, b"9" * 400)).goals
    assert goals == {"slo_tpot_ms": 1e30, "max_kl": float("inf")}
    plan = made()
    switch(plan, slo_tpot_ms=goals["slo_tpot_ms"])
    with pytest.raises(ValueError, match="max_kl=inf must be a number of nats"):
        switch(plan, max_kl=goals["max_kl"])


def test_workers_agree_whatever_each_has_counted() -> None:
    """Data-parallel ranks have requests of their own."""
    first = made().describe() | {"prices": {"1": 8}}
    second = first | {"prices": {}}
    assert control.told([first, second]) == {**first, "workers": 2, "agree": True}
    assert control.told([[first], [second | {"max_kl": 0.01}]])["agree"] is False
