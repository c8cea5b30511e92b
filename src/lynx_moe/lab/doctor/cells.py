"""Samples of interleaved rounds become cells, each one batch size under one policy, by medians over the rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

OF_MEDIAN = 1.2533 * 1.4826  # a normal median's standard error, from the median absolute deviation


@dataclass(frozen=True, kw_only=True)
class Cell:
    """rows: requests that decode together. experts: distinct ones of a layer and step that are loaded; own: what the
    model's routing would load. ms: time of a decode step without what decisions take, decision_ms. noise: the standard
    error of ms, as a share of it. ratio: time per output token under the baseline, by that under this policy, as
    measured with decisions, over the rounds: median, least, most."""

    rows: int
    policy: str
    experts: float
    own: float
    ms: float
    decision_ms: float = 0.0
    noise: float = 0.0
    ratio: tuple[float, float, float] = (1.0, 1.0, 1.0)


def cells(samples: Sequence[dict[str, Any]], baseline: str) -> list[Cell]:
    """A cell for every batch size and policy. Its time is the baseline's median, times the median of what the rounds
    say of this policy against the baseline in the same round: a slow minute then moves all policies alike.

    samples: `batch`, `round`, `policy`, `tpot_ms`, `before`, `after`, `decision_ms` each. Raises ValueError where a
    round of a policy has none of the baseline.
    """
    groups: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault((sample["batch"], sample["policy"]), {})[sample["round"]] = sample
    return [_cell(batch, policy, mine, groups.get((batch, baseline), {})) for (batch, policy), mine in groups.items()]


def _cell(batch: int, policy: str, mine: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> Cell:
    if not set(mine) <= set(base):
        raise ValueError(f"batch {batch}, {policy}: rounds without the baseline, {sorted(set(mine) - set(base))}")
    taken = np.array([sample["tpot_ms"] for sample in mine.values()])
    bases = np.array([base[number]["tpot_ms"] for number in mine])
    shares = taken / bases
    varies = bases / np.median(bases) if base is mine else shares / np.median(shares)
    decision = float(np.median([sample["decision_ms"] for sample in mine.values()]))
    whole = float(np.median(bases) * np.median(shares))
    return Cell(
        rows=batch,
        policy=policy,
        experts=float(np.mean([sample["after"] for sample in mine.values()])),
        own=float(np.mean([sample["before"] for sample in mine.values()])),
        ms=max(whole - decision, 0.01 * whole),
        decision_ms=decision,
        noise=float(OF_MEDIAN * np.median(np.abs(varies - 1)) / len(varies) ** 0.5),
        ratio=(float(np.median(1 / shares)), float((1 / shares).min()), float((1 / shares).max())),
    )
