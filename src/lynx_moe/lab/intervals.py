"""95 % confidence intervals."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def proportion(hits: Sequence[bool]) -> list[float]:
    """Wilson interval of a share of hits."""
    interval = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def mean_difference(a: Sequence[float], b: Sequence[float], seed: int = 0) -> list[float]:
    """Percentile bootstrap of mean(a - b) over paired items; [0, 0] where every pair agrees."""
    gap = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if not gap.any():
        return [0.0, 0.0]
    boot = stats.bootstrap((gap,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed))
    return [float(boot.confidence_interval.low), float(boot.confidence_interval.high)]
