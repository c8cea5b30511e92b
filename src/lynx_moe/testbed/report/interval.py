"""Confidence intervals of shares."""

import math


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of the share `right / n`."""
    share, z2 = right / n, 1.96**2
    centre, half = share + z2 / (2 * n), 1.96 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
