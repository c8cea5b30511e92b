"""The share of the price under a latency objective, on simulated clocks."""

import random

import pytest

from lynx_moe.control.latency import LEAST_PATIENCE, LOW, MOST_PATIENCE, WINDOW, Latency, shares

GOAL_MS = 20.0


class Server:
    """Steps of a machine: t = base + cost * experts, fewer experts the higher the share; noise: relative, one sigma."""

    def __init__(self, cost=0.5, saved=0.6, noise=0.03, seed=0):
        self.latency = Latency(GOAL_MS, knows_prices=True)
        self.cost, self.saved, self.noise, self.rng = cost, saved, noise, random.Random(seed)
        self.trace = []  # (batch, share, ms) of each step

    def seconds(self, batch, share):
        experts = min(64, 8 * batch**0.75)
        kept = 1 - self.saved * share**0.3
        return (2 + self.cost * experts * kept) * self.rng.gauss(1, self.noise) / 1e3

    def run(self, batch, steps):
        for _ in range(steps):
            one = self.latency.of(batch)
            level, seconds = one.level, self.seconds(batch, one.share)
            self.trace.append((batch, one.share, 1e3 * seconds))
            self.latency.add(batch, level, seconds)
        return self.latency.of(batch)


def mean(server, steps):
    last = [ms for _, _, ms in server.trace[-steps:]]
    return sum(last) / len(last)


def test_shares_go_from_exact_to_the_whole_price():
    levels = shares(knows_prices=True)
    assert levels[0] == 0
    assert levels[-1] == 1
    assert levels == sorted(levels)
    assert len(levels) == 34
    assert shares(knows_prices=False) == [0.0, 1.0]


def test_an_idle_server_is_exact():
    server = Server()
    assert server.run(1, 1000).share == 0
    assert server.latency.of(1).changes == {"raise": 0, "lower": 0}


def test_under_load_the_objective_is_met_with_no_more_than_it_needs():
    server = Server()
    one = server.run(16, 4000)
    assert 0 < one.share < 1
    assert not one.missed
    assert LOW * GOAL_MS * 0.97 < mean(server, 1000) <= GOAL_MS
    assert server.seconds(16, 0) > GOAL_MS / 1e3


def test_it_is_met_within_a_few_windows():
    server = Server()
    server.run(16, 8 * WINDOW)
    assert mean(server, WINDOW) <= GOAL_MS * 1.03


def test_what_cannot_be_met_ends_at_the_whole_price_and_says_so():
    server = Server(cost=2.0)
    one = server.run(16, 40 * WINDOW)
    assert one.share == 1
    assert one.missed
    assert one.state()["missed"]


def test_it_does_not_swing():
    """Changes stop, or become rare: in later steps fewer than one window in eight sees one, whatever the
    noise and wherever the objective lies between two levels."""
    for seed in range(20):
        server = Server(noise=0.02 + 0.005 * seed, cost=0.4 + 0.01 * seed, seed=seed)
        server.run(16, 4000)
        before = sum(server.latency.of(16).changes.values())
        server.run(16, 4000)
        assert sum(server.latency.of(16).changes.values()) - before <= 4000 / WINDOW / 8, seed


def test_a_burst_is_followed_and_afterwards_the_small_batch_is_exact_again():
    server = Server()
    server.run(1, 200)
    server.run(16, 30 * WINDOW)
    assert mean(server, 5 * WINDOW) <= GOAL_MS * 1.02
    server.run(1, 200)
    assert server.trace[-1][1] == 0  # a bucket of its own, which never needed anything


def test_when_steps_become_cheaper_the_share_falls():
    server = Server()
    high = server.run(16, 40 * WINDOW).share
    server.cost = 0.2
    server.run(16, MOST_PATIENCE * 20 * WINDOW)
    assert server.latency.of(16).share == 0 < high


def test_a_new_bucket_begins_where_the_next_smaller_one_stands():
    server = Server()
    level = server.run(8, 60 * WINDOW).level
    assert level > 0
    assert server.latency.of(64).level == level
    assert Latency(GOAL_MS, knows_prices=True).of(64).level == 0
    smaller = server.latency.of(2)
    assert smaller.level == 0


def test_steps_of_another_level_say_nothing():
    one = Latency(GOAL_MS, knows_prices=True).of(4)
    for _ in range(10 * WINDOW):
        assert one.add(3, 9.0) is None
    assert one.level == 0
    assert one.typical is None


@pytest.mark.parametrize("knows", [True, False])
def test_a_slow_step_alone_changes_nothing(knows):
    """A long prompt elsewhere, a hiccup of the host: the median does not see it."""
    one = Latency(GOAL_MS, knows_prices=knows).of(4)
    for step in range(20 * WINDOW):
        assert one.add(0, 5.0 if step % 5 == 0 else 0.005) is None


def test_a_policy_without_prices_is_on_or_off():
    one = Latency(GOAL_MS, knows_prices=False).of(4)
    for _ in range(WINDOW):
        one.add(0, 0.03)
    assert one.share == 1.0


def test_the_state_is_in_the_order_of_batch_sizes():
    latency = Latency(GOAL_MS, knows_prices=True)
    for batch in (16, 1, 4):
        latency.of(batch)
    assert [one["batch"] for one in latency.state()["batches"]] == ["1", "2-4", "9-16"]


def test_a_higher_objective_goes_down_to_what_is_known_to_meet_it_and_a_lower_one_goes_up_from_there():
    server = Server(noise=0.0)
    low = server.run(16, 2000).level  # for 20 ms, by way of levels that it has left again
    (change,) = server.latency.aim(60.0)  # exact steps were seen to meet that
    assert (change.share, server.latency.of(16).share) == (0.0, 0.0)
    assert 20 < 1e3 * change.seconds < 60
    server.run(16, 2000)
    assert server.latency.of(16).share == 0
    assert server.latency.state()["slo_tpot_ms"] == 60
    assert server.latency.aim(GOAL_MS) == []
    server.run(16, 8 * WINDOW)
    assert mean(server, WINDOW) <= GOAL_MS * 1.03
    assert abs(server.latency.of(16).level - low) <= 4
    assert server.latency.aim(10.0) == []  # never up by memory
    server.run(16, 40 * WINDOW)
    assert server.latency.of(16).missed


def test_of_another_objective_nothing_is_known_that_was_not_measured():
    """A lower level that was never on, or was too slow, is not taken; patience of the old one is forgotten."""
    one = Latency(GOAL_MS, knows_prices=True).of(16)
    one.level, one.patience, one.medians = 20, MOST_PATIENCE, {0: 0.05, 12: 0.03}
    assert one.aim(0.025) is None
    assert (one.level, one.patience) == (20, LEAST_PATIENCE)
    one.times = [0.02] * 3  # of this level: they stay true
    assert one.aim(0.026) is None
    assert len(one.times) == 3
    change = one.aim(0.031)
    assert (one.level, one.times, one.typical, change.seconds) == (12, [], 0.03, 0.03)
    assert one.changes == {"raise": 0, "lower": 1}


def test_a_burst_begins_with_what_smaller_batches_have_learnt():
    """Also where its size was met before, when nothing was to be done."""
    server = Server()
    server.run(16, 20)
    larger = server.latency.of(16)
    larger.level = 0
    learnt = server.run(8, 200).level
    assert learnt > 0
    assert larger.level >= learnt
    assert larger.changes["lower"] == 0
    assert server.latency.add(4, 0, GOAL_MS / 1e3) == []


def test_a_share_that_was_lifted_falls_again_where_it_is_not_needed():
    server = Server(cost=0.02)  # no step of this machine is near the objective
    server.latency.of(4)
    larger = server.latency.of(64)
    (raised, lifted) = [change for _ in range(WINDOW) for change in server.latency.add(4, 0, 1.2 * GOAL_MS / 1e3)]
    assert (raised.batch, lifted.batch) == ("2-4", "33-64")
    assert larger.level == server.latency.of(4).level > 0
    assert server.run(64, 4000).level == 0


def test_nothing_is_told_of_steps_that_were_not_taken():
    """A size that rises with a smaller one has no step time yet, and neither has missed on the level it rose to."""
    latency = Latency(GOAL_MS, knows_prices=False)
    smaller, larger = latency.of(4), latency.of(64)
    for _ in range(WINDOW):
        latency.add(4, 0, 2 * GOAL_MS / 1e3)
    assert (smaller.level, larger.level) == (1, 1)
    assert (larger.state()["step_ms"], larger.missed, smaller.missed) == (None, False, False)
    for _ in range(WINDOW):
        latency.add(4, 1, 1.5 * GOAL_MS / 1e3)
    assert smaller.missed
    assert not larger.missed
