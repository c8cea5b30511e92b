"""The latency objective at work in one engine: steps are timed, and rows ask the share of their prices that it needs.

A step's time is that from its beginning to the beginning of the next one, by the clock of the worker that speaks for
all: what a request waits for its next token. Only steps that decode and nothing else count, with a request that goes on
in the next one (else the engine had nothing to do meanwhile), and no shadow steps: prompts and second passes take time
through no fault of experts. A time travels as the samples of shadow steps do, so that every rank and stage takes it up
at the same step.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lynx_moe.control.latency import Change, Latency
from lynx_moe.policies import Policy

logger = logging.getLogger("vllm.lynx_moe")


@dataclass(frozen=True)
class Timed:
    """One step: rows that may be remapped, the level that it was decided on, its seconds."""

    batch: int
    level: int
    seconds: float


@dataclass
class Open:
    """The step that runs: when it began, whose it is, what it is known by. timed: it counts."""

    start: float
    requests: set[str]
    timed: bool
    batch: int = 0
    level: int = 0


class Pace:
    """Of one policy of the server. goal_ms: the objective. clock: seconds."""

    def __init__(self, goal_ms: float, policy: Policy, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.latency = Latency(goal_ms, knows_prices=policy.knows_prices)
        self.open: Open | None = None
        self.taken: list[Timed] = []

    def begin(self, decodes_R: np.ndarray, req_ids: Sequence[str]) -> None:
        """A step of these requests begins, and the one before it has ended. decodes_R: bool [R], whose rows are its
        next token, or that and a draft: not a prompt's, nor those of an answer that is computed again in bulk."""
        now, before, requests = self.clock(), self.open, set(req_ids)
        if before is not None and before.timed and before.batch and before.requests & requests:
            self.taken.append(Timed(before.batch, before.level, now - before.start))
        self.open = Open(now, requests, bool(decodes_R.all()))

    def prices(self, price_T: np.ndarray, kin_T: np.ndarray, batch: int) -> np.ndarray:
        """What the rows of the step ask, float32, of what they would; kin_T: bool, who is decided with rows of the
        server's policy. batch: rows that may be remapped."""
        bucket = self.latency.of(batch)
        if self.open is not None:
            self.open.batch, self.open.level = batch, bucket.level
        return np.where(kin_T, price_T * np.float32(bucket.share), price_T).astype(np.float32)

    def whole(self, batch: int) -> bool:
        """Whether rows ask all of their prices."""
        return self.latency.of(batch).share == 1

    def leave_out(self) -> None:
        """The step that runs takes longer than others: a shadow step."""
        if self.open is not None:
            self.open.timed = False

    def told(self) -> list[Timed]:
        """Times for all workers, each once."""
        taken, self.taken = self.taken, []
        return taken

    def hear(self, timed: Timed) -> None:
        """A step's time, as all workers hear it; a change of the share is logged."""
        for change in self.latency.add(timed.batch, timed.level, timed.seconds):
            self._log(change, "took")

    def aim(self, goal_ms: float) -> None:
        """Another objective, from the next step on."""
        for change in self.latency.aim(goal_ms):
            self._log(change, "took there")

    def _log(self, change: Change, took: str) -> None:
        logger.info(
            "lynx_moe: slo_tpot_ms %g: steps of %s rows ask %.3g of their prices instead of %.3g: %s %.1f ms%s",
            self.latency.goal_ms,
            change.batch,
            change.share,
            change.was,
            took,
            1e3 * change.seconds,
            "; more is not allowed" if change.share == 1 else "",
        )

    def state(self) -> dict[str, Any]:
        """In plain numbers."""
        return self.latency.state()
