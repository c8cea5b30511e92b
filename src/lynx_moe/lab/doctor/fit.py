"""How long a decode step takes, as a formula that is fitted to cells: numpy alone, nothing measured.

    ms = max(a + b * experts + e * rows,  c + d * rows)

The left side is a step that waits for memory: b is the load of one more distinct expert in every layer, e what a row
adds beside it (its attention, its cache). The right side is a step that waits for something else: for arithmetic where
d rules, for the host where c does. No number is below 0.

A fit is the best of FORMS, each of which leaves some numbers out. In a form with both sides every cell belongs to one:
each side is fitted to its own cells by least squares on relative errors, cells move to the side that is longer, and so
on until none moves, from many starts. Numbers below 0 are passed by: the form without them is tried too.
Of all forms the one of least BIC is taken: a number must explain more than the noise to be there at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lynx_moe.lab.doctor.cells import Cell

LEFT = ("a", "ae", "b", "ab", "be", "abe")
RIGHT = ("c", "d", "cd")
FORMS = [(left, "") for left in LEFT]
FORMS += [(left, right) for left in LEFT for right in RIGHT if "b" in left or (left == "a" and "d" in right)]
LEAST_NOISE = 0.005  # of a cell's time: no formula of five numbers is truer than that
DOUBT = 2.0  # a number's weight in BIC, where 1 lets noise pass for a small number in one fit of thirty
MOVES = 25


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Milliseconds of a step, by what they go with: distinct experts, rows, neither."""

    loads: float
    rows: float
    fixed: float

    @property
    def ms(self) -> float:
        return self.loads + self.rows + self.fixed


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The formula's numbers, milliseconds each. noise: a typical cell's, error: of the fit (root of the mean square);
    both are shares of a cell's time."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 0.0
    noise: float = 0.0
    error: float = 0.0

    def parts(self, rows: float, experts: float) -> Parts:
        """What a step of so many rows waits for, if it loads so many experts a layer."""
        left = Parts(loads=self.b * experts, rows=self.e * rows, fixed=self.a)
        right = Parts(loads=0.0, rows=self.d * rows, fixed=self.c)
        return left if left.ms >= right.ms else right

    def ms(self, rows: float, experts: float) -> float:
        return self.parts(rows, experts).ms


def fit(cells: Sequence[Cell]) -> Fit:
    """The formula of these cells. Raises ValueError where they hold fewer than two batch sizes, or no batch size of
    two numbers of experts: then nothing tells loads from rows."""
    if len({cell.rows for cell in cells}) < 2:
        raise ValueError("a fit needs two batch sizes or more")
    if len({(cell.rows, round(cell.experts, 3)) for cell in cells}) == len({cell.rows for cell in cells}):
        raise ValueError("a fit needs two policies or more that load different numbers of experts")
    ms = np.array([cell.ms for cell in cells])
    rows, experts = (np.array([getattr(cell, name) for cell in cells], dtype=float) for name in ("rows", "experts"))
    ones = np.ones(len(cells))
    columns = {name: column / ms for name, column in zip("abcde", (ones, experts, ones, rows, rows), strict=True)}
    noise = max(LEAST_NOISE, float(np.median([cell.noise for cell in cells])))
    found: dict[float, tuple[dict[str, float], float]] = {}
    for left, right in FORMS:
        starts = [np.zeros(len(cells), dtype=bool)] if not right else list(_starts(rows, experts))
        for numbers in (numbers for start in starts for numbers in _moves(columns, left, right, start)):
            error = float(np.mean((_sides(columns, numbers, left, right).max(0) - 1) ** 2))
            count = len(left) + len(right) + bool(right)
            found[len(cells) * np.log(error + noise**2) + DOUBT * count * np.log(len(cells))] = numbers, error
    numbers, error = found[min(found)]
    return Fit(**numbers, noise=noise, error=error**0.5)


def _starts(rows_N: np.ndarray, experts_N: np.ndarray) -> Iterator[np.ndarray]:
    """Which cells the right side may have at first: the largest batches, the smallest, those of most rows an expert."""
    for edge in np.unique(rows_N):
        yield rows_N >= edge
        yield rows_N <= edge
    share_N = rows_N / experts_N
    for edge in np.quantile(share_N, np.arange(0.1, 0.96, 0.085)):
        yield share_N >= edge


def _moves(columns: dict[str, np.ndarray], left: str, right: str, on_right_N: np.ndarray) -> Iterator[dict[str, float]]:
    """The numbers of a form on the way from one start, those below 0 left out; ends where no cell moves any more, or
    where a side has too few cells."""
    for _ in range(MOVES):
        numbers: dict[str, float] = {}
        for names, mine_N in ((left, ~on_right_N), (right, on_right_N)):
            if names:
                table = np.stack([columns[name][mine_N] for name in names], 1)
                solved, _, rank, _ = np.linalg.lstsq(table, np.ones(len(table)), rcond=None)
                if rank < len(names):
                    return
                numbers |= dict(zip(names, solved.tolist(), strict=True))
        if min(numbers.values()) >= 0:
            yield numbers
        sides = _sides(columns, numbers, left, right)
        now_N = np.zeros_like(on_right_N) if not right else sides[1] > sides[0]
        if (now_N == on_right_N).all():
            return
        on_right_N = now_N


def _sides(columns: dict[str, np.ndarray], numbers: dict[str, float], left: str, right: str) -> np.ndarray:
    """Each side's time as a share of the measured one, [1 or 2, N]."""
    return np.stack([sum(numbers[name] * columns[name] for name in names) for names in (left, right) if names])
