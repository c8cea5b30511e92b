"""Intervals about a median."""

from lynx_moe.lab.shared import intervals


def test_an_interval_holds_the_median_and_outliers_do_not_move_it() -> None:
    values = [float(number) for number in range(101)]
    low, high = intervals.median(values)
    assert 30 < low < 50 < high < 70
    assert intervals.median([*values[:-1], 1e9]) == [low, high]
    assert intervals.median([3.0, 3.0]) == [3.0, 3.0]
