"""Samples of the KL of one level of a price, and what they say of its mean."""

import math
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Self

GROUPS, T_99 = 8, 2.998  # Student's t, one-sided, with GROUPS - 1 degrees of freedom
ENOUGH, LONG, KEPT = 1024, 4096, 8192  # rows
UNSEEN = 3.0  # what happens in 3 of n rows is missed by n rows once in twenty times


class Window(NamedTuple):
    """Samples that follow each other: `num` of them, their rows and the sum of their KL; the rows and the KL of the one
    that has the most."""

    num: int
    rows: float
    kl: float
    most_rows: float
    most_kl: float

    @property
    def mean(self) -> float:
        return self.kl / self.rows

    @property
    def rest(self) -> float:
        """The mean without that sample, which alone says nothing; 0 where fewer than three are left."""
        return (self.kl - self.most_kl) / (self.rows - self.most_rows) if self.num > 3 else 0.0

    def after(self, older: Self) -> "Window":
        most = max(self[3:], older[3:], key=lambda one: one[1])
        return Window(self.num + older.num, self.rows + older.rows, self.kl + older.kl, *most)


class Measured:
    """Samples of one level: rows and the sum of their KL, of each shadow step; the newest KEPT rows."""

    def __init__(self) -> None:
        self.samples: deque[tuple[float, float]] = deque()
        self.rows = self.kl = 0.0
        self.newest_by_size: list[list[Window]] = []  # of 1, 2, 4, ... samples: one or two windows of each, newest last

    def add(self, rows: float, kl: float) -> None:
        self._remember(Window(1, rows, kl, rows, kl))
        self.samples.append((rows, kl))
        self.rows, self.kl = self.rows + rows, self.kl + kl
        while self.rows - self.samples[0][0] >= KEPT:
            old_rows, old_kl = self.samples.popleft()
            self.rows, self.kl = self.rows - old_rows, self.kl - old_kl

    @property
    def mean(self) -> float:
        return self.kl / self.rows if self.rows else 0.0

    @property
    def margin(self) -> float:
        """From the mean to either confidence bound; infinite while there are too few samples."""
        count = len(self.samples)
        if count < GROUPS:
            return float("inf")
        samples, means = list(self.samples), []
        for group in range(GROUPS):
            part = samples[count * group // GROUPS : count * (group + 1) // GROUPS]
            means.append(sum(kl for _, kl in part) / sum(rows for rows, _ in part))
        middle = sum(means) / GROUPS
        return T_99 * math.sqrt(sum((mean - middle) ** 2 for mean in means) / (GROUPS - 1) / GROUPS)

    def upper(self, spike: float) -> float:
        """The upper confidence bound, where rows of up to `spike` nats are known. Of fewer than ENOUGH rows it is taken
        the larger, as their tail is unseen."""
        rows = max(self.rows, 1.0)
        return (self.mean + self.margin) * math.sqrt(max(1.0, ENOUGH / rows)) + UNSEEN * spike / rows

    def newest(self) -> Iterator[Window]:
        """The newest sample, and ever longer windows that begin with it, up to LONG rows."""
        whole = Window(0, 0.0, 0.0, 0.0, 0.0)
        for window in (window for windows in self.newest_by_size for window in reversed(windows)):
            whole = whole.after(window)
            if whole.rows > LONG:
                return
            yield whole

    def _remember(self, window: Window) -> None:
        """Of a third window of a size the older two become one of the next size."""
        for windows in self.newest_by_size:
            windows.append(window)
            if len(windows) < 3:
                return
            older, newer = windows.pop(0), windows.pop(0)
            window = newer.after(older)
        self.newest_by_size.append([window])
