"""How far a long part is, said now and then."""

import time
from collections.abc import Callable

EVERY = 15.0  # seconds between two lines: enough for a log, and no silence for whoever waits


class Progress:
    """Told of every step of `of`; says by `tell` how many are done and about how long the rest will take."""

    def __init__(self, tell: Callable[[str], None], of: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._of, self._clock = tell, of, clock
        self._done, self._begun = 0, clock()
        self._said = self._begun

    def step(self) -> None:
        self._done += 1
        now = self._clock()
        if now - self._said >= EVERY and self._done < self._of:
            self._said = now
            left = (now - self._begun) / self._done * (self._of - self._done)
            self._tell(f"  {self._done} of {self._of} steps, about {duration(left)} left")


def duration(seconds: float) -> str:
    """In the largest unit that says enough: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
