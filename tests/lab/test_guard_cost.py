"""The cost of a guard, from the seconds of interleaved runs."""

import pytest

from lynx_moe.lab.guard_cost import HEAD, measure, summarise, table


def line(number: int, alone: float, guarded: float, own: float) -> dict:
    return {
        "batch": 16,
        "policy": "lynx",
        "round": number,
        "alone": alone,
        "guarded": guarded,
        "state": {"seconds": own},
    }


def test_slow_downs_are_paired_by_round_and_shares_are_of_the_guarded_run():
    (row,) = summarise([line(1, 10, 10.1, 0.0505), line(2, 20, 20.4, 0.0816), line(3, 10, 9.9, 0.099)], tokens=101)
    assert row["slower"] == pytest.approx(0.01)
    assert row["slower_range"] == pytest.approx([-0.01, 0.02])
    assert row["own"] == pytest.approx(0.005)
    assert row["alone"] == pytest.approx(16 * 100 / 10)
    assert len(table([row])[0]) == len(HEAD)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": "x"}, "unknown shape"),
        ({"guard": {}}, "give a bound"),
        ({"tokens": 600}, "--tokens 600 must lie between 2 and 496"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(given, message):
    settings = {"shape": "qwen3-30b", "layers": 1, "policies": ["lynx"], "batch_sizes": [2], "rounds": 1, "tokens": 9}
    with pytest.raises(ValueError, match=message):
        measure(**{**settings, "guard": {"max_error": 1}, **given})
