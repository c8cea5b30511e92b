"""A price that follows the measured KL: as high as a bound allows, for each bucket of batch sizes by itself.

A bucket stands on a level of a list of prices, of which 0 (exact) is the first. Shadow steps measure the level in force
and, in a trial that nobody's tokens come from, a higher one. What the rules promise:

- A level is taken only if the upper confidence bound of its mean KL lies below RAISE of the bound, from FEW rows or
  more that were measured in trials. So nobody is served at a price that was not measured in this bucket; a lower one
  than a measured one is taken at once.
- The confidence bound is that of batch means: the samples, in the order of time, in GROUPS groups of the same size, and
  Student's t of 99 % on their means. Of means that are near normal one in a hundred such bounds lies below the mean. KL
  is heavy-tailed: of simulated tails with a standard deviation of three to seven means, up to one in ten does
  (`tests/control/test_bound.py`). So a level may be taken wrongly; then what is measured in force takes it back.
- Rows with a KL as large as any that was seen in force may be missed by a trial: it is assumed that they happen in
  UNSEEN of its rows. What was never seen, and happens in one of some thousand rows, is found out only in force.
- A level in force is left when the mean of its last KEPT rows passes the bound. So that a changed workload need not
  fill these first, shorter windows of the newest rows, from RECENT to LONG, are held against it too. Without its
  largest sample, a window of n rows must have a mean of 1 + CUT / sqrt(n) bounds for the level to be left:
  3 of 64 rows, 2 of 256, 1.25 of 4096. So the shorter it is the less is believed, and one row alone changes nothing.
- From 1 + LOOK / sqrt(n) bounds on, the largest sample included and down to one sample, a window is a reason to look
  closer: steps are sampled densely until it is refuted or the level is left.
- It falls to where the bound would hold if KL rose as the price. Measured powers of it lie between 0.4 and 2.6. So a
  second fall, before anything was raised and before the level between was in force for long, goes by the power that was
  measured from the first level to the second.

Where the least price cannot be held, the bucket is exact, and the trials go on.

Of another bound a bucket keeps what it has measured. Under a lower one a level stays only if its upper confidence bound
lies below RAISE of that too. Else the price falls as if KL rose as the price, from that confidence bound, or where too
little is known in force from RAISE of the old bound. Under a higher one the level stays, and higher ones are tried
again.

A bound may also only back off (seeks=False): the list ends at the policy's own price, and a bucket begins there. Its
first step is a shadow step, and the same rules take the price down, and up again. Nothing is looked for in haste, so it
costs next to nothing where the bound holds; but the first price in force is one that nobody has measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lynx_moe.control.measured import ENOUGH, GROUPS, KEPT, UNSEEN, Measured
from lynx_moe.control.sampling import Turns, bucket

LEAST, STEP, MOST = 1e-4, 2**0.25, 2.0  # prices that are tried; a price of 2 loads what rows cannot do without
RECENT, FEW = 64, 256  # rows
RAISE = 0.9  # of the bound
CUT, LOOK = 16.0, 2.0  # bounds above the bound, of a mean of one row; of n rows by their root less
FLATTEST = 0.4  # the least power of the price that KL is taken to rise with
# shares of the steps that are shadow steps: while a level is sought, while it is confirmed in force, while one that was
# not tried is, and after
DENSE, CONFIRMING, WATCHING, SPARSE = 1 / 4, 1 / 32, 1 / 128, 1 / 512
LONGEST = 8  # levels that are skipped at once


def price_list(*, knows_prices: bool, last: float | None = None) -> list[float]:
    """The levels: exact, and prices up to `last`, None: as far as prices go; of a policy that knows none, exact and
    itself."""
    if not knows_prices:
        return [0.0, 1.0]
    found = [0.0, LEAST]
    while found[-1] * STEP <= MOST:
        found.append(found[-1] * STEP)
    return found if last is None else [price for price in found if price < last] + [last]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another level: where, from and to which price, and why."""

    batch: str
    was: float
    price: float
    why: str


class Bucket:
    """One controller. most: the bound, in nats; prices: the levels. seeks: it begins exact, and looks for the highest
    price that the bound allows; else it begins with the last one, and backs off."""

    def __init__(self, batch: str, most: float, prices: Sequence[float], *, seeks: bool = True) -> None:
        self.batch, self.most, self.prices, self.seeks = batch, most, prices, seeks
        self.level, self.jump = (0, LONGEST) if seeks else (len(prices) - 1, 1)
        self.now, self.above = Measured(), Measured()
        self.settled, self.turns = not seeks, Turns(credit=1.0)
        self.looks = False  # something in force asks to be looked at closely
        self.fell: tuple[float, float] | None = None  # price and KL of the level that it fell from last
        self.spike = 0.0  # the largest sum of a sample in force, forgotten over some thousand samples
        self.changes = {"raise": 0, "lower": 0}

    @property
    def price(self) -> float:
        return self.prices[self.level]

    @property
    def trial(self) -> int:
        """The level that is tried."""
        return min(self.level + self.jump, len(self.prices) - 1)

    @property
    def share(self) -> float:
        """Of the steps of this bucket that are shadow steps."""
        if self.looks:
            return DENSE
        if not self.settled:
            return DENSE if self.seeks else CONFIRMING
        if self.level == 0 or self.now.rows >= KEPT / 2:
            return SPARSE
        return CONFIRMING if self.seeks else WATCHING

    def due(self) -> bool:
        """Whether the step that begins is a shadow step."""
        return self.turns.due(self.share)

    def add(self, level: int, now: tuple[float, float], trial: int, above: tuple[float, float] | None) -> Change | None:
        """The rows of a shadow step and their KL, of two levels. Returns a change, if due. Samples that were under way
        while the level changed are of no use."""
        if level != self.level:
            return None
        self.spike = max(self.spike * (1 - 1 / KEPT), now[1])
        if level and now[0]:
            self.now.add(*now)
            if self.now.rows >= KEPT / 2:
                self.fell = None
            found = self._judged()
            if found is not None:
                return self._lower(found[0], f"{found[0]:.3g} nats in the last {found[1]:.0f} rows")
        if above is None or not above[0] or trial != self.trial or trial == level:
            self.settled = self.settled or trial == level
            return None
        self.above.add(*above)
        low = self.above.rows >= FEW and self.above.mean < RAISE * self.most
        high = self.above.mean > self.most
        if low and self.above.upper(self.spike) < RAISE * self.most:
            return self._raise()
        patience = min(ENOUGH + 2 * UNSEEN * self.spike / self.most, KEPT / 2)  # where half of the bound could be told
        if self.above.rows >= patience or (high and self.above.mean - self.above.margin > self.most):
            self.settled, self.jump = self.jump == 1, max(self.jump // 2, 1)
            self.above = Measured()
        return None

    def aim(self, most: float) -> Change | None:
        """The bound is another one, in nats. Returns a change, if the level in force is not known to hold it."""
        before, self.most = self.most, most
        if most > before:
            self.jump, self.settled, self.above = LONGEST, False, Measured()
        if most >= before or not self.level:
            return None
        known = self.now.rows >= FEW and len(self.now.samples) >= GROUPS
        worst = self.now.upper(self.spike) if known else max(RAISE * before, self.now.mean)
        if worst < RAISE * most:
            return None
        return self._lower(worst, f"{most:g} nats are allowed now, and {worst:.3g} may have been served")

    def _judged(self) -> tuple[float, float] | None:
        """The level in force: (mean, rows) of what the bound does not hold for, None where it does."""
        windows = list(self.now.newest())
        self.looks = any(one.mean > self.most * (1 + LOOK / math.sqrt(one.rows)) for one in windows)
        found = [
            (one.rest, one.rows)
            for one in windows
            if one.rows >= RECENT and one.rest > self.most * (1 + CUT / math.sqrt(one.rows))
        ]
        if self.now.rows >= FEW and self.now.mean > self.most:
            found.append((self.now.mean, self.now.rows))
        return max(found, default=None)

    def _raise(self) -> Change:
        why = f"{self.above.upper(self.spike):.3g} nats at the most in {self.above.rows:.0f} rows of trials"
        was, self.level, self.fell = self.price, self.trial, None
        self.now, self.above = self.above, Measured()
        self.jump, self.settled = min(2 * self.jump, LONGEST), False
        return self._changed("raise", was, why)

    def _lower(self, found: float, why: str) -> Change:
        """To where the bound would hold if KL rose as the price; on a second fall as it did between both, if slower."""
        was, power = self.price, 1.0
        if self.fell is not None:
            price, kl = self.fell
            power = min(max(math.log(kl / found) / math.log(price / was), FLATTEST), 1.0)
        reach, self.fell = was * (RAISE * self.most / found) ** (1 / power), (was, found)
        self.level = max(place for place in range(self.level) if place == 0 or self.prices[place] <= reach)
        self.now, self.above = Measured(), Measured()
        self.jump, self.settled, self.looks = 1, False, False
        return self._changed("lower", was, why)

    def _changed(self, direction: str, was: float, why: str) -> Change:
        self.changes[direction] += 1
        return Change(batch=self.batch, was=was, price=self.price, why=why)

    def state(self) -> dict[str, Any]:
        """In plain numbers; upper: None while too little is known."""
        known = self.level > 0 and len(self.now.samples) >= GROUPS
        return {
            "batch": self.batch,
            "price": self.price,
            "mean": self.now.mean if self.level else 0.0,
            "upper": self.now.upper(self.spike) if known else None,
            "rows": self.now.rows,
            "trial": self.prices[self.trial],
            "settled": self.settled,
            "changes": dict(self.changes),
        }


class Bound:
    """All buckets of one engine, made when they are first met."""

    def __init__(self, most: float, prices: Sequence[float], *, seeks: bool = True) -> None:
        self.most, self.prices, self.seeks = most, prices, seeks
        self.buckets: dict[str, Bucket] = {}

    def of(self, batch: int) -> Bucket:
        """The controller for steps of this many rows that may be remapped."""
        name = bucket(batch)
        if name not in self.buckets:
            self.buckets[name] = Bucket(name, self.most, self.prices, seeks=self.seeks)
        return self.buckets[name]

    def aim(self, most: float) -> list[Change]:
        """The bound is another one from now on. Returns what changes by that."""
        self.most = most
        changes = [bucket.aim(most) for bucket in self.buckets.values()]
        return [change for change in changes if change is not None]
