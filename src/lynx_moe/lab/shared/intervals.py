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


def median(values: Sequence[float], seed: int = 0) -> list[float]:
    """Percentile bootstrap of the median; [v, v] where all values equal v."""
    value = np.asarray(values, dtype=float)
    if (value == value[0]).all():
        return [float(value[0]), float(value[0])]
    boot = stats.bootstrap((value,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(seed))
    return [float(boot.confidence_interval.low), float(boot.confidence_interval.high)]


def weighted_mean(values: Sequence[float], weights: Sequence[float], seed: int = 0) -> list[float]:
    """Percentile bootstrap of the weighted mean over pairs of value and weight; [v, v] where all values equal v."""
    value, weight = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    if (value == value[0]).all():
        return [float(value[0]), float(value[0])]

    def mean(weighed: np.ndarray, weight: np.ndarray, axis: int = -1) -> np.ndarray:
        result: np.ndarray = weighed.sum(axis) / weight.sum(axis)
        return result

    rng = np.random.default_rng(seed)
    boot = stats.bootstrap(
        (value * weight, weight), mean, paired=True, vectorized=True, method="percentile", n_resamples=2000, rng=rng
    )
    return [float(boot.confidence_interval.low), float(boot.confidence_interval.high)]
