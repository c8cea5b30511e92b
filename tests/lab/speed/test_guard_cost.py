"""The cost of a guard, from the seconds of interleaved runs."""

import pytest

from lynx_moe.lab.speed.guard_cost import BLOCK, HEAD, Turns, is_guarded, measure, pairs, summarise, table


def test_slow_downs_are_of_blocks_of_the_same_steps_and_the_own_share_is_of_the_guarded_ones():
    first = {"batch": 16, "policy": "lynx", "round": 1, "alone": [10.0, 20.0], "guarded": [10.1, 20.4], "own": 0.305}
    (row,) = summarise([first, {**first, "round": 2}])
    assert row["blocks"] == 4
    assert row["slower"] == pytest.approx(0.5 / 30)
    low, high = row["slower_interval"]
    assert 0.099 / 15 < low < row["slower"] < high < 0.401 / 15
    assert row["own"] == pytest.approx(0.01)
    assert row["alone"] == pytest.approx(16 * BLOCK / 15)
    assert len(table([row])[0]) == len(HEAD)


class FakePlan:
    watch: object | None = "guard"


def test_each_step_is_taken_once_with_the_guard_and_once_without():
    plan, passes = FakePlan(), []
    for first in (False, True):
        turns, seconds = Turns(plan, first), []
        turns.after_step()  # the prompts' step
        for step in range(3 * BLOCK + 5):
            seconds.append(step // BLOCK + (0.5 if plan.watch else 0))
            turns.after_step()
        turns.end()
        assert plan.watch == "guard"
        passes.append(seconds)
    assert pairs(*passes) == ([0, BLOCK, 2 * BLOCK], [0.5 * BLOCK, 1.5 * BLOCK, 2.5 * BLOCK])
    assert [is_guarded(step, False) for step in range(0, 4 * BLOCK, BLOCK)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": "x"}, "unknown shape"),
        ({"guard": {}}, "give a bound"),
        ({"tokens": 600}, "--tokens 600 must lie between 9 and 496"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(given, message):
    settings = {"shape": "qwen3-30b", "layers": 1, "policies": ["lynx"], "batch_sizes": [2], "rounds": 1, "tokens": 99}
    with pytest.raises(ValueError, match=message):
        measure(**{**settings, "guard": {"max_error": 1}, **given})
