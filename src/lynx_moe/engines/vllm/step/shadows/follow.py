"""The bound on the KL at work in one engine: each step asks its bucket's price, and shadow steps say how that goes."""

import logging
from typing import Any

import numpy as np

from lynx_moe.control.bound import Bound, Change, price_list
from lynx_moe.engines.vllm.step.shadows.passes import ABOVE, Trial
from lynx_moe.engines.vllm.step.shadows.sample import Sample
from lynx_moe.policies import Policy

logger = logging.getLogger("vllm.lynx_moe")


class Follow:
    """max_kl: the bound, in nats. policy: the server's; requests that ask for another price of it keep the ratio.
    number: of the searches in this engine, so that late samples are not taken for another's. seeks:
    begins exact and seeks a price; else begins with the policy's own, and backs off from it."""

    def __init__(self, max_kl: float, policy: Policy, number: int, *, seeks: bool = True) -> None:
        self.number = number
        self.asks = policy.asks if policy.knows_prices else 1.0
        prices = price_list(knows_prices=policy.knows_prices, last=None if seeks else self.asks)
        self.bound = Bound(max_kl, prices, seeks=seeks)

    def prices(self, price_T: np.ndarray, kin_T: np.ndarray, batch: int) -> np.ndarray:
        """What the rows of a step ask, float32, of what their policies ask; kin_T: bool, who is decided with rows of
        the server's policy. batch: rows that may be remapped."""
        return self._times(price_T, kin_T, self.bound.of(batch).price)

    def due(self, batch: int) -> bool:
        return self.bound.of(batch).due()

    def taken(self, batch: int) -> None:
        """A step that was not due is a shadow step."""
        self.bound.of(batch).turns.taken()

    def trials(
        self, price_T: np.ndarray, kin_T: np.ndarray, batch: int, *, whole: bool = True
    ) -> tuple[Any, dict[str, Trial]]:
        """What a shadow step tries, and what its sample is then told by. whole: the rows ask the level's price, and not
        a share of it."""
        bucket = self.bound.of(batch)
        at = (self.number, bucket.level, bucket.trial, whole)
        if bucket.trial == bucket.level:
            return at, {}
        return at, {ABOVE: Trial(self._times(price_T, kin_T, bucket.prices[bucket.trial]))}

    def hear(self, sample: Sample) -> None:
        """One sample; a change of a price is logged."""
        if sample.at is None or sample.at[0] != self.number:  # before prices were sought, or of a guard's ladder
            return
        _, level, trial, whole = sample.at
        above = None if sample.above is None else (sample.above.rows, sample.above.kl)
        now = (sample.server.rows, sample.server.kl) if whole else (0.0, 0.0)  # a share says nothing of the level
        change = self.bound.of(sample.batch).add(level, now, trial, above)
        if change is not None:
            self._log(change)

    def aim(self, max_kl: float) -> None:
        """Another bound, from the next step on."""
        for change in self.bound.aim(max_kl):
            self._log(change)

    def _log(self, change: Change) -> None:
        logger.info(
            "lynx_moe: %s %g: steps of %s rows ask %.3g instead of %.3g: %s",
            "max_kl" if self.bound.seeks else "back_off_kl",
            self.bound.most,
            change.batch,
            change.price,
            change.was,
            change.why,
        )

    def state(self) -> dict[str, Any]:
        """In plain numbers."""
        return {"max_kl": self.bound.most, "batches": [one.state() for one in self.bound.buckets.values()]}

    def _times(self, price_T: np.ndarray, kin_T: np.ndarray, price: float) -> np.ndarray:
        return np.where(kin_T, price_T * np.float32(price / self.asks), price_T).astype(np.float32)
