"""A policy with prices against others at the number of experts that they keep."""

from typing import Any

import numpy as np
import pytest

from lynx_moe.lab.fidelity import equal

KL = np.random.default_rng(0).lognormal(-4, 1, 40)


def line(policy: str, after: float, factor: float, gain: float = 0.0, size: int = 16) -> dict[str, Any]:
    """A record's line of 40 sequences, of 8 and 16 tokens in turn."""
    kl, steps = KL * factor, [8, 16] * 20
    known = {"batch_size": size, "mix": "mixed", "cache": "own", "policy": policy, "before": 40.0, "after": after}
    each = {"kl_by_sequence": kl.tolist(), "gain_by_sequence": [gain] * 40, "steps_by_sequence": steps}
    return known | each | {"kl": float(np.average(kl, weights=steps))}


def test_kl_is_interpolated_geometrically_and_likelihood_in_a_line() -> None:
    ours = [line("priced:price=0.1", 10, 8, -0.4), line("priced:price=0.01", 30, 2, -0.2)]
    (found,) = equal.compared([*ours, line("lynx", 20, 5, -0.1)])
    assert found["ours"] == "priced"
    assert found["ratio"] == pytest.approx(4 / 5)
    assert found["ratio_interval"] == pytest.approx([0.8, 0.8])  # the same sequences, so nothing is left to chance
    assert found["gain"] == pytest.approx(-0.2)
    found = equal.compared([*ours, line("lynx", 10, 5)])[0]
    assert found["ratio"] == pytest.approx(8 / 5)  # just where one was measured


def test_policies_are_compared_at_equal_loads_of_the_fullest_rank() -> None:
    def ranked(policy: str, fullest: float, factor: float) -> dict[str, Any]:
        return line(policy, 20, factor) | {"fullest_before": 12.0, "fullest_after": fullest}

    ours = [ranked("priced:price=0.1,per_rank=true", 4, 8), ranked("priced:price=0.01,per_rank=true", 8, 2)]
    (found,) = equal.compared([*ours, ranked("lynx", 6, 8)])
    assert (found["ours"], found["before"], found["after"]) == ("priced:per_rank=true", 12, 6)
    assert found["ratio"] == pytest.approx(4 / 8)


def test_settings_are_grouped_by_all_but_the_price_and_cells_stand_alone() -> None:
    ours = [line(f"priced:price={price},slope=1", after, 1) for price, after in ((0.1, 10), (0.01, 30))]
    rest = [line("priced:reroute=1", 12, 1), line("lynx", 20, 2), line("lynx", 20, 2, size=4)]
    (found,) = equal.compared([*ours, *rest])
    assert (found["ours"], found["batch"]) == ("priced:slope=1", 16)


def test_the_default_is_a_rival_of_its_other_forms_and_they_are_none_of_each_other() -> None:
    knobs, prices = ((",slope=1", 1), (",slope=2", 3), ("", 2)), ((0.1, 10), (0.01, 30))
    forms = [line(f"priced:price={price}{form}", after, kl) for form, kl in knobs for price, after in prices]
    found = [(one["ours"], one["rival"], round(one["ratio"], 6)) for one in equal.compared(forms)]
    assert found == [(f"priced:slope={slope}", f"priced:price={price}", ratio)
                     for price in (0.1, 0.01) for slope, ratio in ((1, 0.5), (2, 1.5))]  # fmt: skip


@pytest.mark.parametrize("after", [9.0, 31.0])
def test_nothing_is_said_beyond_what_was_measured(after: float) -> None:
    results = [line("priced:price=0.1", 10, 8), line("priced:price=0.01", 30, 2), line("lynx", after, 5)]
    assert equal.compared(results) == []
    with pytest.raises(ValueError, match="measure more prices"):
        equal.page(results)


def test_an_interval_covers_what_differs_between_sequences() -> None:
    rival = line("lynx", 20, 1)
    rival["kl_by_sequence"] = np.random.default_rng(1).permutation(rival["kl_by_sequence"]).tolist()
    (found,) = equal.compared([line("priced:price=0.1", 10, 1), line("priced:price=0.01", 30, 1), rival])
    low, high = found["ratio_interval"]
    assert low < found["ratio"] < high
    assert high - low > 0.2
