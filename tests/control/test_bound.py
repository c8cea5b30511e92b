"""The price that follows the measured KL, on simulated heavy tails: what it promises, and what it does not."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_moe.control.bound import FEW, FLATTEST, LEAST, RAISE, SPARSE, STEP, Bound, Bucket, price_list
from lynx_moe.control.measured import ENOUGH, KEPT, LONG, Measured
from lynx_moe.control.sampling import bucket, due, in_order

PRICES = price_list(knows_prices=True)
BOUNDS = (0.01, 0.001)
TAILS = {  # draws of mean 1: name -> (rng, count)
    "exponential": lambda rng, n: rng.exponential(1, n),
    "lognormal 1.5": lambda rng, n: rng.lognormal(-(1.5**2) / 2, 1.5, n),
    "lognormal 2": lambda rng, n: rng.lognormal(-(2.0**2) / 2, 2.0, n),
    "pareto 2.1": lambda rng, n: rng.pareto(2.1, n) * 1.1,
    "spikes": lambda rng, n: rng.exponential(0.3, n) + (rng.random(n) < 0.001) * 700 * rng.exponential(1, n),
    "one in fifty": lambda rng, n: (rng.random(n) < 0.02) * 50 * rng.exponential(1, n),
    "one in a hundred": lambda rng, n: (rng.random(n) < 0.01) * 100 * rng.exponential(1, n),
}


class Served:
    """A server whose KL grows as a power of the price; `means` holds what each step truly costs."""

    def __init__(self, most, tail, factor, power, batch, seed=0, prices=PRICES, seeks=True):
        self.one, self.tail, self.batch = Bucket("x", most, prices, seeks=seeks), TAILS[tail], batch
        self.factor, self.power, self.rng = factor, power, np.random.default_rng(seed)
        self.means, self.shadows, self.changes = [], 0, []

    def mean(self, level):
        return self.factor * self.one.prices[level] ** self.power if level else 0.0

    def run(self, steps):
        """Steps between two shadow steps are passed over: nothing happens in them."""
        one, end = self.one, len(self.means) + steps
        while True:
            level = one.level
            wait = min(max(math.ceil((1 - one.credit) / one.share - 1e-9), 1) - 1, end - len(self.means))
            self.means += [self.mean(level)] * wait
            one.credit += wait * one.share
            if len(self.means) == end:
                return self
            self.means.append(self.mean(level))
            if one.due():
                self.shadows += 1
                kl = self.tail(self.rng, self.batch).sum()
                trial = one.trial
                above = (self.batch, self.mean(trial) * kl) if trial != level else None
                change = one.add(level, (self.batch, self.mean(level) * kl), trial, above)
                self.changes += [change] if change else []


@pytest.mark.parametrize("most", BOUNDS)
@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("tail", ["exponential", "lognormal 1.5", "lognormal 2"])
def test_it_ends_below_the_bound_and_within_a_factor_of_two(most, batch, tail):
    ends, above = [], []
    for seed in range(5):
        served = Served(most, tail, factor=0.05, power=1.5, batch=batch, seed=seed).run(40_000)
        ends.append(served.means[-1] / most)
        above.append(np.mean(np.array(served.means) > most * 1.05))
    assert max(ends) <= 1.05  # a wrong level of one in ten lies within a step of the list
    assert np.median(ends) >= (0.4 if tail == "lognormal 2" else 0.5)
    assert max(above) < 0.05


@pytest.mark.parametrize(("batch", "steps"), [(1, 20_000), (4, 6_000), (16, 2_500), (64, 2_500)])
def test_how_many_steps_it_takes(batch, steps):
    """Half of the bound is reached by most runs; docs/reference/shadows.md names these numbers."""
    reached = [Served(0.01, "lognormal 1.5", 0.05, 1.5, batch, seed).run(steps).means[-1] for seed in range(7)]
    assert np.median(reached) >= 0.005


@pytest.mark.parametrize("most", BOUNDS)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_harmful_policy_is_exact_from_the_first_step_to_the_last(most, batch):
    """`random` knows no prices: it is served or not."""
    served = Served(most, "lognormal 1.5", 0.9, 1.0, batch, prices=price_list(knows_prices=False)).run(20_000)
    assert set(served.means) == {0.0}
    assert served.one.settled
    assert served.one.share == SPARSE


def test_what_is_harmless_is_served_at_the_highest_price():
    served = Served(0.01, "exponential", 1e-4, 1.0, 16).run(20_000)
    assert served.one.price == PRICES[-1]
    assert served.one.settled


def test_the_least_price_is_given_up_too():
    served = Served(0.001, "exponential", 1.0, 0.01, 16).run(20_000)  # any price costs 0.9 nats
    assert set(served.means) == {0.0}


def backing_off(batch, share, seed, tail="lognormal 1.5", asks=0.03):
    """A server that begins with a price of its own, whose KL is so many times the bound."""
    prices = price_list(knows_prices=True, last=asks)
    return Served(0.01, tail, share * 0.01 / asks**1.5, 1.5, batch, seed, prices, seeks=False)


@pytest.mark.parametrize(
    ("batch", "share", "steps"),
    [
        *((1, 2, 7_000), (1, 3, 3_500), (1, 10, 1_300), (1, 30, 1_000)),
        *((4, 2, 1_800), (4, 3, 700), (4, 10, 200), (4, 30, 150)),
        *((16, 2, 500), (16, 3, 150), (16, 10, 40), (16, 30, 40)),
        *((64, 2, 40), (64, 3, 40), (64, 10, 40), (64, 30, 40)),
    ],
)
def test_a_price_that_harms_is_taken_back(batch, share, steps):
    """Steps until the mean lies below the bound for good; docs/reference/shadows.md has the medians."""
    passed = []
    for seed in range(7):
        above = np.flatnonzero(np.array(backing_off(batch, share, seed).run(20_000).means) > 0.0105)
        passed.append(above[-1] + 1)
    assert np.median(passed) <= steps


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_price_that_does_not_harm_stays_and_costs_next_to_nothing(batch, share):
    served = backing_off(batch, share, seed=0).run(20_000)
    assert (served.changes, served.one.price, served.one.state()["settled"]) == ([], 0.03, True)
    assert served.shadows < 0.012 * 20_000


def test_a_price_that_was_taken_back_comes_again_but_never_above_the_policy_s():
    served = backing_off(16, 10, seed=1).run(5_000)
    low = served.one.price
    assert 0 < low < 0.03
    served.factor /= 100
    served.run(60_000)
    assert served.one.price == 0.03 == served.one.prices[-1]


def test_what_knows_no_prices_is_served_until_it_harms():
    prices = price_list(knows_prices=False, last=1.0)
    served = Served(0.01, "exponential", 0.05, 1.0, 16, prices=prices, seeks=False).run(2_000)
    assert served.means[0] == 0.05
    assert set(served.means[200:]) == {0.0}


def long_settled(tail, batch, seed, share):
    """A server that has stood on one level for so long that all the rows it keeps are of it, sampled most rarely; its
    KL is that share of the bound."""
    served = Served(0.01, tail, 0.05, 1.5, batch, seed)
    one = served.one
    one.level = max(level for level in range(len(PRICES)) if served.mean(level) <= 0.0075)
    served.factor *= share * 0.01 / served.mean(one.level)
    one.settled, one.jump = True, 1
    while one.now.rows + batch < KEPT:
        one.now.add(batch, served.mean(one.level) * served.tail(served.rng, batch).sum())
    return served


@pytest.mark.parametrize(
    ("batch", "factor", "steps"),
    [
        *((1, 3, 16_000), (1, 4, 13_000), (1, 10, 2_500), (1, 30, 2_500)),
        *((4, 3, 4_000), (4, 4, 2_500), (4, 10, 700), (4, 30, 700)),
        *((16, 3, 1_700), (16, 4, 700), (16, 10, 250), (16, 30, 250)),
        *((64, 3, 700), (64, 4, 700), (64, 10, 250), (64, 30, 250)),
    ],
)
def test_a_workload_that_becomes_more_harmful_is_followed(batch, factor, steps):
    """docs/reference/shadows.md names medians of these."""
    late = []
    for seed in range(5):
        served = long_settled("lognormal 1.5", batch, seed, 0.6).run(2_000)
        assert served.means[-1] == pytest.approx(0.006)
        served.factor *= factor
        served.run(24_000)
        after = np.array(served.means[2_000:])
        late.append(np.nonzero(after > 0.0105)[0].max(initial=0) + 1)
        assert served.one.changes["lower"] >= 1
    assert np.median(late) < steps, late


@pytest.mark.parametrize("batch", [1, 4, 16, 64])
@pytest.mark.parametrize("tail", ["lognormal 1.5", "lognormal 2"])
def test_a_level_just_below_the_bound_is_kept_and_seldom_looked_at(tail, batch):
    """What tells of a change soon must not cry in vain."""
    served = [long_settled(tail, batch, seed, 0.92).run(60_000) for seed in range(4)]
    assert not any(one.changes for one in served)
    assert np.mean([one.shadows for one in served]) / 60_000 < 0.005  # SPARSE alone: 0.002


def test_a_workload_that_becomes_easier_is_followed():
    served = Served(0.01, "exponential", 0.5, 1.5, 16).run(20_000)
    served.factor /= 10
    assert served.run(200_000).means[-1] >= 0.005


@pytest.mark.parametrize("tail", [tail for tail in TAILS if tail != "spikes"])
def test_how_often_the_upper_bound_lies_below_the_mean(tail):
    rng, missed = np.random.default_rng(7), 0
    for _ in range(400):
        one = Measured()
        for kl in TAILS[tail](rng, ENOUGH).reshape(-1, 16).sum(1):
            one.add(16, kl)
        missed += one.upper(0.0) < 1
    assert missed / 400 <= 0.13


def test_few_rows_are_not_believed():
    one = Bucket("x", 0.01, PRICES)
    for _ in range(64):
        assert one.add(0, (1, 0.0), one.trial, (1, 0.009)) is None  # below the bound, but of 64 rows
    assert one.price == 0.0
    assert one.above.upper(0.0) > 0.009


def test_a_harm_that_sits_in_few_rows_is_looked_for_in_enough_of_them():
    """Alone, a router's second expert may be worth nothing in all but one row of fifty."""
    one = Bucket("x", 0.01, PRICES)
    for _ in range(FEW - 1):
        assert one.add(0, (1, 0.0), one.trial, (1, 0.0)) is None
    assert one.add(0, (1, 0.0), one.trial, (1, 0.0)) is not None
    taken = [Served(0.01, "one in fifty", 0.02, 0.01, 1, seed).run(20_000) for seed in range(20)]
    assert np.mean([np.mean(np.array(served.means) > 0.01) for served in taken]) < 0.05


def test_samples_of_another_level_are_of_no_use():
    one = Bucket("x", 0.01, PRICES)
    for _ in range(100):
        assert one.add(3, (16, 0.0), one.trial, (16, 0.0)) is None
        assert one.add(0, (16, 0.0), one.trial + 1, (16, 0.0)) is None
    assert one.level == 0


def test_it_falls_as_far_as_the_kl_is_above_the_bound():
    one = Bucket("x", 0.01, PRICES)
    one.level = len(PRICES) - 1
    change = None
    while change is None:
        change = one.add(one.level, (16, 16 * 0.1), one.trial, None)
    assert change.price == pytest.approx(PRICES[-1] * RAISE / 10, rel=0.2)
    assert "0.1 nats in the last 64 rows" in change.why


@pytest.mark.parametrize("power", [0.3, 0.4, 0.7, 1.0, 2.0])
def test_a_second_fall_goes_by_how_the_kl_rose_between_the_first_two_levels(power):
    one = Bucket("x", 0.01, price_list(knows_prices=True, last=0.03), seeks=False)
    levels = [one.price]
    while len(levels) < 3:
        kl = 0.05 * (one.price / 0.03) ** power
        if kl < 0.01:
            break
        if one.add(one.level, (16, 16 * kl), one.level, None):
            levels.append(one.price)
    first = 0.03 * RAISE * 0.01 / 0.05
    assert first / STEP < levels[1] <= first
    if power < 1:
        fits = levels[1] * (RAISE * 0.01 / (0.05 * (levels[1] / 0.03) ** power)) ** (1 / max(power, FLATTEST))
        assert fits / STEP < levels[2] <= fits * (1 + 1e-9)
    else:
        assert levels[2:] == []


@pytest.mark.parametrize(("share", "steps"), [(2, 2_000), (4, 1_500)])
def test_where_the_kl_rises_slower_than_the_price_two_falls_suffice(share, steps):
    """As its root, in batches of 4: until the mean lies below the bound for good, median of seven runs."""
    passed = []
    for seed in range(7):
        prices = price_list(knows_prices=True, last=0.03)
        served = Served(0.01, "lognormal 1.5", share * 0.01 / 0.03**0.5, 0.5, 4, seed, prices, seeks=False).run(8_000)
        passed.append(np.flatnonzero(np.array(served.means) > 0.0105)[-1] + 1)
    assert np.median(passed) <= steps


def test_one_row_alone_changes_no_price():
    one = Bucket("x", 0.01, PRICES)
    one.level = 20
    for _ in range(400):
        one.add(20, (1, 0.001), one.trial, None)
    assert one.add(20, (1, 3.0), one.trial, None) is None  # 64 rows with it have a mean of 0.05
    assert one.add(20, (1, 3.0), one.trial, None) is not None  # and 402 with both one of 0.016


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 5)), min_size=1, max_size=300))
def test_windows_are_of_the_newest_samples_and_grow_to_the_longest(samples):
    one = Measured()
    for rows, kl in samples:
        one.add(rows, kl)
    windows = list(one.newest())
    counts = [window.num for window in windows]
    assert counts[0] == 1
    assert all(before < after <= 3 * before for before, after in pairwise(counts))
    assert counts[-1] == len(samples) or windows[-1].rows <= LONG < 4 * windows[-1].rows
    for window in windows:
        taken = samples[-window.num :]
        largest = max(taken, key=lambda sample: sample[1])
        assert window.rows == sum(rows for rows, _ in taken) <= LONG
        assert window.mean == pytest.approx(sum(kl for _, kl in taken) / window.rows)
        if window.num > 3:
            rest = sum(kl for _, kl in taken) - largest[1]
            rows = [window.rows - size for size, kl in taken if kl == largest[1]]
            assert any(window.rest == pytest.approx(rest / left, abs=1e-9) for left in rows)


def test_what_was_seen_once_is_expected_again():
    one = Bucket("x", 0.01, PRICES)
    one.above.add(1, 0.0)
    careless = one.above.upper(0.0)
    assert one.above.upper(0.5) == careless + 1.5


@pytest.mark.parametrize("most", BOUNDS)
def test_spikes_in_one_of_a_thousand_rows_are_paid_for_by_care(most):
    """Tails with a standard deviation of thirty means: on average over time, the bound holds for most runs; others
    pass it, by less than three times (docs/reference/shadows.md)."""
    shares = [np.mean(Served(most, "spikes", 0.05, 1.5, 16, seed).run(40_000).means) / most for seed in range(10)]
    assert sum(share > 1 for share in shares) <= 3
    assert max(shares) < 3


@settings(max_examples=60, deadline=None)
@given(
    kls=st.lists(st.floats(0, 5), min_size=40, max_size=400),
    batch=st.integers(1, 64),
    most=st.sampled_from(BOUNDS),
)
def test_whatever_is_measured_levels_stay_in_the_list_and_rise_by_trials_alone(kls, batch, most):
    one = Bucket("x", most, PRICES)
    for kl in kls:
        level, trial = one.level, one.trial
        change = one.add(level, (batch, batch * kl), trial, (batch, batch * kl))
        assert 0 <= one.level < len(PRICES)
        if change is not None and one.level > level:
            assert one.level == trial
            assert one.now.upper(0.0) < RAISE * most
        assert one.now.rows < KEPT + batch


def test_ranks_that_hear_the_same_decide_the_same():
    bounds = [Bound(0.01, PRICES) for _ in range(2)]
    rng = np.random.default_rng(1)
    for _ in range(5000):
        batch = int(rng.integers(1, 40))
        ones = [each.of(batch) for each in bounds]
        assert len({one.due() for one in ones}) == 1
        kl = float(rng.exponential(0.002)) * batch
        for one in ones:
            one.add(one.level, (batch, kl), one.trial, (batch, 2 * kl))
    assert [one.state() for one in bounds[0].buckets.values()] == [one.state() for one in bounds[1].buckets.values()]
    assert {*bounds[0].buckets} == {"1", "2-4", "5-8", "9-16", "17-32", "33-64"}


def test_the_list_of_prices_begins_with_exact():
    assert PRICES[:2] == [0.0, LEAST]
    assert sorted(PRICES) == PRICES
    assert price_list(knows_prices=False) == [0.0, 1.0]


def test_buckets_hold_every_size_once():
    names = [bucket(rows) for rows in range(1, 129)]
    assert in_order([*{*names}]) == ["1", "2-4", "5-8", "9-16", "17-32", "33-64", "65-128"]
    for rows, name in enumerate(names, 1):
        first, _, last = name.partition("-")
        assert int(first) <= rows <= int(last or first)


def test_one_step_in_so_many_is_due():
    steps = [step for step in range(1, 2049) if due(step, 1 / 256)]
    assert steps == list(range(256, 2049, 256))
    assert all(due(step, 1) for step in range(1, 10))
    assert not any(due(step, 0) for step in range(1, 10))


@pytest.mark.parametrize("tail", ["exponential", "lognormal 1.5"])
@pytest.mark.parametrize(("batch", "servers"), [(4, 3), (16, 10)])
def test_under_a_lower_bound_no_price_stays_that_only_the_old_one_allowed(batch, servers, tail):
    """At once, before a row was measured under the new one: it holds from the next step on, and they end near it."""
    below, ends, above = [], [], []
    for seed in range(servers):
        served = Served(0.01, tail, 0.05, 1.5, batch, seed).run(40_000)
        assert served.one.level
        change = served.one.aim(0.002)
        assert change is not None
        assert change.price < change.was
        below.append(served.mean(served.one.level) <= 0.002)
        start = len(served.means)
        served.run(40_000)
        ends.append(served.means[-1] / 0.002)
        above.append(np.mean(np.array(served.means[start:]) > 0.002 * 1.05))
    assert all(below)
    assert max(ends) <= 1.05
    assert np.median(ends) >= 0.4
    assert max(above) < 0.05


@pytest.mark.parametrize("batch", [4, 16])
def test_under_a_higher_bound_the_price_stays_and_a_higher_one_is_looked_for(batch):
    ends = []
    for seed in range(5):
        served = Served(0.001, "lognormal 1.5", 0.05, 1.5, batch, seed).run(40_000)
        level, rows = served.one.level, served.one.now.rows
        assert served.one.aim(0.01) is None
        assert (served.one.level, served.one.now.rows, served.one.settled) == (level, rows, False)
        served.run(40_000)
        ends.append(served.means[-1] / 0.01)
    assert max(ends) <= 1.05
    assert np.median(ends) >= 0.5


def test_a_price_that_is_known_to_hold_the_lower_bound_too_stays():
    """A highest price that costs next to nothing: thousands of rows say so."""
    served = Served(0.1, "exponential", 1e-4, 1.0, 16).run(40_000)
    level, rows = served.one.level, served.one.now.rows
    assert served.one.aim(0.01) is None
    assert (served.one.level, served.one.now.rows, served.one.settled) == (level, rows, True)
    assert served.one.aim(1e-5) is not None  # and that is too low for it
    assert served.mean(served.one.level) <= 1e-5


def test_what_is_exact_stays_exact_under_any_bound_and_late_samples_change_nothing():
    bound = Bound(0.01, PRICES)
    one = bound.of(16)
    one.level = 20
    (change,) = bound.aim(0.001)  # nothing was measured in force: the old bound is all that is known
    assert change.price <= PRICES[20] / 10
    assert bound.of(1).most == 0.001
    level = one.level
    assert one.add(20, (16, 1.0), 28, (16, 0.0)) is None
    assert (one.level, one.now.rows) == (level, 0)
    one.level = 0
    assert bound.aim(1e-5) == []
    assert one.level == 0


def test_a_policy_without_prices_is_exact_until_the_lower_bound_is_shown_to_hold():
    one = Bucket("x", 0.01, price_list(knows_prices=False))
    one.level = 1
    assert one.aim(0.005) is not None
    assert one.level == 0
    assert not one.settled
