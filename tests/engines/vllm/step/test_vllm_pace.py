"""A latency objective in real engines: clocks are made up, steps are real."""

import numpy as np
import pytest
import told
from tiny_vllm import engine, generate, prompts, save_model, tokens

from lynx_moe.control.latency import WINDOW
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.shared.pace import Pace, Timed
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.policies import make_policy

SLOW, FAST = 1.0, 1e-6  # seconds that a step is said to take
PRICED = make_policy("priced")


class Clock:
    """Every look is `seconds` later than the one before."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("mixtral", tmp_path_factory.mktemp("model"))


def config(**options):
    return {"lynx_moe": {"policy": "priced:price=0.3", "shadow": 0, **options}}


def run(llm, seconds=None, wishes=(None,), count=24):
    if seconds is not None:
        active().pace.clock = Clock(seconds)
    lynx_vllm.reset_stats()
    return tokens(generate(llm, prompts(count, seed=5), wishes)), lynx_vllm.stats()


def test_steps_that_are_short_stay_exact_and_long_ones_ask_a_price(model):
    with engine(model, additional_config=config(policy="vanilla")) as llm:
        exact, _ = run(llm)
    with engine(model, additional_config=config(slo_tpot_ms=100)) as llm:
        idle, before = run(llm, FAST)
        run(llm, SLOW, count=160)
        _, after = run(llm)
        mine = {one["batch"]: one for one in after.pace["batches"]}
    assert idle == exact
    assert before.mean_after == before.mean_before
    assert mine["9-16"]["changes"]["raise"] >= 1
    assert mine["9-16"]["share"] > 0.05
    assert mine["9-16"]["step_ms"] == pytest.approx(1000)
    assert after.mean_after < after.mean_before
    assert after.pace["slo_tpot_ms"] == 100


def test_exact_requests_stay_exact_and_others_of_the_same_policy_keep_their_ratio(model):
    with engine(model, additional_config=config(slo_tpot_ms=100)) as llm:
        plan, asked = active(), []
        for _ in range(4):
            run(llm, SLOW)
        bucket = plan.pace.latency.of(16)
        bucket.level = 20
        ask = plan.rows.ask
        plan.rows.ask = lambda price_T: (asked.append((plan.rows.num_decode_rows, price_T)), ask(price_T))[1]
        generate(llm, prompts(16, seed=6), (None, 0.6, "exact"))
    prices = next(price_T for rows, price_T in asked if 9 <= rows <= 11)
    found = sorted(set(np.round(prices[prices > 0], 6)))
    share = bucket.levels[20]
    assert found == pytest.approx([0.3 * share, 0.6 * share], rel=1e-4)


def test_under_a_bound_the_bound_s_price_is_the_whole(model):
    with engine(model, additional_config=config(slo_tpot_ms=100, max_kl=0.01, shadow=None)) as llm:
        plan = active()
        run(llm, SLOW, count=64)
        bounded = plan.bounded.bound.of(16)
        bounded.level, asked = 10, []
        ask = plan.rows.ask
        plan.rows.ask = lambda price_T: (asked.append((plan.rows.num_decode_rows, price_T)), ask(price_T))[1]
        plan.pace.latency.of(16).level = 20
        generate(llm, prompts(16, seed=6))
    share, price = plan.pace.latency.levels[20], bounded.prices[10]
    asked_for = {float(price_T.max()) for rows, price_T in asked if rows >= 9}
    assert min(asked_for) == pytest.approx(price * share, rel=1e-4)
    assert max(asked_for) > price  # a trial's, which nobody's tokens come from


def test_of_a_share_nothing_follows_for_the_bound_s_price(model):
    with engine(model, additional_config=config(slo_tpot_ms=100, max_kl=0.01, shadow=1)) as llm:
        plan = active()
        plan.pace.clock = Clock(FAST)
        bounded = plan.bounded.bound.of(16)
        bounded.level = 10
        generate(llm, prompts(16, seed=6))
        assert plan.shadows.sums.steps > 5
    assert bounded.level == 10
    assert bounded.now.rows == 0
    assert bounded.above.rows > 0


def test_a_switch_begins_anew_and_vanilla_has_no_objective(model):
    with engine(model, additional_config=config(slo_tpot_ms=100)) as llm:
        run(llm, SLOW, count=48)
        first = active().pace
        assert first.latency.buckets
        lynx_vllm.set_policy("lynx")
        assert active().pace.latency.levels == [0.0, 1.0]
        lynx_vllm.set_policy("vanilla")
        assert active().pace is None
        assert lynx_vllm.stats().pace is None


def test_what_is_timed():
    """Steps that only decode, with a request that goes on; no shadow steps, no prompts, no pauses."""
    pace, decode, mixed = Pace(100, PRICED, Clock(0.5)), np.array([True, True]), np.array([True, False])

    def step(past_prompt_R, ids, batch=2, shadow=False):
        pace.begin(past_prompt_R, ids)
        pace.prices(np.ones(2, np.float32), np.ones(2, bool), batch)
        if shadow:
            pace.leave_out()

    step(decode, ["a", "b"])
    assert pace.told() == []
    step(decode, ["a", "b"])
    assert pace.told() == [Timed(2, 0, 0.5)]
    step(mixed, ["a", "c"])
    assert pace.told() == [Timed(2, 0, 0.5)]  # of the step before it
    step(decode, ["a", "c"])
    assert pace.told() == []  # the mixed step is no measure
    step(decode, ["a", "c"], shadow=True)
    pace.told()
    step(decode, ["a", "c"])
    assert pace.told() == []
    step(decode, ["d"])
    assert pace.told() == []  # nobody went on: the engine may have had nothing to do
    step(decode, ["d"], batch=0)
    pace.told()
    step(decode, ["d"])
    assert pace.told() == []  # exact rows alone


def test_an_answer_that_is_computed_again_in_bulk_is_no_step_of_decoding():
    """A preempted request comes back with a part of its answer in the prefix cache: past its prompt, with many rows."""
    plan = told.make_plan(slo_tpot_ms=100)
    plan.pace.clock = Clock(0.5)

    def step(*scheduled, drafts=0):
        count = len(scheduled)
        given = (np.array(scheduled), np.array([drafts] * count), [str(number) for number in range(count)])
        plan.begin_batch(np.ones(count, bool), *given)
        plan.pace.prices(np.ones(count, np.float32), np.ones(count, bool), count)
        return plan.pace.told()

    step(1, 1)
    assert step(1, 40) == [Timed(2, 0, 0.5)]
    assert step(1, 1) == []
    step(3, 3, drafts=2)
    assert step(1, 1) == [Timed(2, 0, 0.5)]


def test_times_are_heard_by_their_level():
    pace = Pace(100, PRICED, Clock(0.5))
    for _ in range(WINDOW):
        pace.hear(Timed(8, 0, 0.3))
    assert pace.latency.of(8).level > 0
    assert not pace.whole(8)
    assert pace.prices(np.full(2, 0.5, np.float32), np.array([True, False]), 8)[1] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slo_tpot_ms": 0}, "slo_tpot_ms=0 must be a number of milliseconds above 0, such as 50"),
        ({"slo_tpot_ms": -3}, "must be a number"),
        ({"slo_tpot_ms": float("nan")}, "must be a number"),
        ({"slo_tpot_ms": float("inf")}, "must be a number"),
        ({"slo_tpot_ms": "fast"}, "must be a number"),
        ({"slo_tpot_ms": True}, "must be a number"),
        ({"slo_tpot_ms": 50, "policy": "vanilla"}, "policy='vanilla' changes nothing"),
        ({"slo_tpot_ms": 50, "verify": "draft"}, "leaves the served model exact"),
        ({"slo_tpot_ms": 50, "guard": {"max_kl": 0.01}}, "a guard moves the policy too"),
    ],
)
def test_bad_objectives(options, message):
    from types import SimpleNamespace

    with pytest.raises(ValueError, match=message):
        Options.of(SimpleNamespace(additional_config={"lynx_moe": {"policy": "priced", **options}}))
