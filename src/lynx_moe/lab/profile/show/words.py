"""How the numbers of a profile are written, and when two of them differ."""

from typing import Any

import numpy as np

from lynx_moe.lab.shared.intervals import weighted_mean

Line = dict[str, Any]


def mnats(line: Line) -> str:
    low, high = line["kl_interval"]
    return f"{number(1000 * line['kl'])} [{number(1000 * low)}, {number(1000 * high)}] millinats"


def percent(line: Line, name: str) -> str:
    """A share with its interval, without the sign."""
    low, high = line[f"{name}_interval"]
    return f"{100 * line[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float) -> str:
    """To three figures or so."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def more(a: Line, b: Line) -> bool | None:
    """Whether `a` costs more than `b`, the same tokens compared; None: not clear."""
    gap = np.subtract(a["kl_by_sequence"], b["kl_by_sequence"])
    low, high = weighted_mean(gap.tolist(), a["steps_by_sequence"])
    return None if low <= 0 <= high else low > 0


def times(a: Line, b: Line) -> str:
    return f"{number(a['kl'] / b['kl'])} times" if b["kl"] > 0 else "more than nothing"
