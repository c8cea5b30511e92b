"""A share of the price that follows the measured step time: no more harm than a latency objective needs.

A bucket of batch sizes stands on a level of a list of shares, of which 0 (exact) is the first and 1 (the whole price of
the server, whoever says it) the last. Steps that only decode are timed. The median of WINDOW of them decides:

- Above the objective the share rises, by more levels the further it is off. On the last level the objective is missed:
  the price is what quality allows, and quality wins.
- Below LOW of the objective the share falls by one level, once that many windows in a row were so as `patience` says. A
  fall that has to be taken back within twice as many windows doubles the patience, one that lasts halves it. So a
  bucket does not swing between two levels.
- In between nothing changes.

A bucket that is met for the first time begins where the next smaller one stands. Steps of more rows take longer: where
a bucket's share rises, larger ones that ask less rise with it, and fall again by themselves.

Of another objective a bucket keeps where it stands and what it has measured. If a lower level is known to meet it, the
least such level is taken at once; otherwise the rules above go on from there.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lynx_moe.control.sampling import bucket, in_order

HALVINGS, BETWEEN = 8, 4  # of the whole price, down to the least share; levels to a halving
WINDOW = 16  # steps
LOW = 0.9  # of the objective
RISES = ((1.3, 12), (1.15, 8), (1.05, 4), (1.0, 1))  # beyond this ratio to the objective: levels at once
LEAST_PATIENCE, MOST_PATIENCE = 4, 64  # windows


def shares(*, knows_prices: bool) -> list[float]:
    """The levels; of a policy that knows no prices, exact and itself."""
    count = HALVINGS * BETWEEN if knows_prices else 0
    return [0.0, *(2 ** (-number / BETWEEN) for number in range(count, -1, -1))]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another share: where, from and to which, and the median step in seconds that it follows from."""

    batch: str
    was: float
    share: float
    seconds: float


class Bucket:
    """One controller. goal: seconds of a step; levels: the shares; level: where it begins."""

    def __init__(self, batch: str, goal: float, levels: Sequence[float], level: int) -> None:
        self.batch, self.goal, self.levels, self.level = batch, goal, levels, level
        self.times: list[float] = []
        self.typical: float | None = None
        self.medians: dict[int, float] = {}  # the newest of each level
        self.quiet, self.patience = 0, LEAST_PATIENCE
        self.lasted: int | None = None  # windows since the last change, if that was a fall of which too little is known
        self.changes = {"raise": 0, "lower": 0}

    @property
    def share(self) -> float:
        return self.levels[self.level]

    @property
    def missed(self) -> bool:
        """Whether the objective is missed although nothing is left to give, by steps on the last level."""
        return self.level == len(self.levels) - 1 and self.medians.get(self.level, 0.0) > self.goal

    def add(self, level: int, seconds: float) -> Change | None:
        """A step that was decided on a level took so long. Returns a change, if due. Steps that were under way while
        the level changed are of no use."""
        if level != self.level:
            return None
        self.times.append(seconds)
        if len(self.times) < WINDOW:
            return None
        self.typical, self.times = statistics.median(self.times), []
        self.medians[self.level] = self.typical
        ratio = self.typical / self.goal
        if ratio > 1:
            return self._rise(ratio, self.typical)
        if self.lasted is not None:
            self.lasted += 1
            if self.lasted > 2 * self.patience:
                self.lasted, self.patience = None, max(self.patience // 2, LEAST_PATIENCE)
        self.quiet = self.quiet + 1 if ratio < LOW and self.level else 0
        return self._to(self.level - 1, "lower", self.typical) if self.quiet >= self.patience and self.level else None

    def aim(self, goal: float) -> Change | None:
        """The objective is another one, in seconds of a step. Returns a change if a lower level is known to meet it."""
        self.goal, self.quiet, self.patience, self.lasted = goal, 0, LEAST_PATIENCE, None
        meet = [level for level, seconds in self.medians.items() if level < self.level and seconds <= goal]
        if not meet:
            return None
        self.times, self.typical = [], self.medians[min(meet)]
        return self._to(min(meet), "lower", self.typical)

    def lift(self, level: int, seconds: float) -> Change | None:
        """Steps of fewer rows, which took so long, ask that level now. Returns a change where these asked less."""
        if self.level >= level:
            return None
        self.times, self.typical = [], None  # of a step like these nothing is known there
        return self._to(level, "raise", seconds)

    def _rise(self, ratio: float, seconds: float) -> Change | None:
        self.quiet = 0
        if self.lasted is not None:
            self.lasted, self.patience = None, min(2 * self.patience, MOST_PATIENCE)
        levels = next(levels for beyond, levels in RISES if ratio > beyond)
        to = min(self.level + levels, len(self.levels) - 1)
        return self._to(to, "raise", seconds) if to != self.level else None

    def _to(self, level: int, direction: str, seconds: float) -> Change:
        was, self.level = self.share, level
        self.quiet, self.lasted = 0, 0 if direction == "lower" else None
        self.changes[direction] += 1
        return Change(batch=self.batch, was=was, share=self.share, seconds=seconds)

    def state(self) -> dict[str, Any]:
        """In plain numbers; step_ms: None while no window is full."""
        return {
            "batch": self.batch,
            "share": self.share,
            "step_ms": None if self.typical is None else 1e3 * self.typical,
            "missed": self.missed,
            "changes": dict(self.changes),
        }


class Latency:
    """All buckets of one engine. goal_ms: the objective for the time per output token, in ms."""

    def __init__(self, goal_ms: float, *, knows_prices: bool) -> None:
        self.goal_ms, self.levels = goal_ms, shares(knows_prices=knows_prices)
        self.buckets: dict[str, Bucket] = {}

    def of(self, batch: int) -> Bucket:
        """The controller for steps of this many rows that may be remapped."""
        name = bucket(batch)
        if name not in self.buckets:
            order = in_order([name, *self.buckets])
            smaller = order[: order.index(name)]
            level = self.buckets[smaller[-1]].level if smaller else 0
            self.buckets[name] = Bucket(name, self.goal_ms / 1e3, self.levels, level)
        return self.buckets[name]

    def add(self, batch: int, level: int, seconds: float) -> list[Change]:
        """A step of this many rows was decided on a level and took so long. Returns what changes by that."""
        one = self.of(batch)
        change = one.add(level, seconds)
        if change is None:
            return []
        order, lifted = in_order(list(self.buckets)), []
        if change.share > change.was:
            larger = [self.buckets[name] for name in order[order.index(one.batch) + 1 :]]
            lifted = [other.lift(one.level, change.seconds) for other in larger]
        return [change, *(other for other in lifted if other is not None)]

    def aim(self, goal_ms: float) -> list[Change]:
        """The objective is another one from now on. Returns what changes by that."""
        self.goal_ms = goal_ms
        changes = [bucket.aim(goal_ms / 1e3) for bucket in self.buckets.values()]
        return [change for change in changes if change is not None]

    def state(self) -> dict[str, Any]:
        """In plain numbers."""
        order = in_order(list(self.buckets))
        return {"slo_tpot_ms": self.goal_ms, "batches": [self.buckets[name].state() for name in order]}
