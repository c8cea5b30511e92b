"""What each method costs at a given share of experts, from the lines of a bakeoff: fronts, and who is ahead.

A method's front are its settings that no other one beats in both experts kept and KL. Between neighbours on it, KL is
interpolated geometrically; beyond its last setting, it stays. Settings that keep 99.9 % and more are left out.
Intervals are 95 %, bootstrap over sequences: all methods of a cell are drawn with the same sequences, so that ratios
between methods are paired. A cell is a batch size with a mix of groups.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Line = dict[str, Any]
FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
RESAMPLES, LEAST_KL, SAME = 500, 1e-7, 0.999


def pareto(kept: np.ndarray, log_kl: np.ndarray) -> list[int]:
    """The places of the front's settings, from few experts to many: KL falls along it."""
    found: list[int] = []
    for place in np.lexsort((log_kl, kept)).tolist():
        if not found or log_kl[place] < log_kl[found[-1]]:
            found.append(place)
    return found


def lowest(kept: np.ndarray, log_kl: np.ndarray, fractions: Sequence[float]) -> np.ndarray:
    """Log KL of the front at each fraction; NaN where no setting keeps so few."""
    on = pareto(kept, log_kl)
    result: np.ndarray = np.interp(fractions, kept[on], log_kl[on], left=np.nan)
    return result


def fronts(lines: Iterable[Line], fractions: Sequence[float] = FRACTIONS) -> list[Line]:
    """A line per cell and method: `calibrated`, whether it reads a calibration; `settings` on the front (spec, kept,
    kl); `at`: for each fraction the lowest KL, in nats, with its interval (None where no setting keeps so few), and
    `draws` of its logarithm, [R, F]."""
    found = []
    for (batch_size, mix), cell in _grouped(lines, "batch_size", "mix").items():
        mean_S, draw_SR = _kl(cell)
        kept_S = np.array([line["after"] / line["before"] for line in cell])
        for (method,), _ in _grouped(cell, "method").items():
            mine = np.array(
                [n for n, one in enumerate(cell) if one["method"] == method and kept_S[n] < SAME], dtype=int
            )
            if not len(mine):
                continue
            on = mine[pareto(kept_S[mine], mean_S[mine])]
            draws = np.array([lowest(kept_S[mine], log_kl, fractions) for log_kl in draw_SR[mine].T])
            middle = lowest(kept_S[mine], mean_S[mine], fractions)
            found.append({"batch_size": batch_size, "mix": mix, "method": method, "policy": cell[mine[0]]["policy"],
                          "calibrated": "data=" in cell[mine[0]]["spec"],
                          "settings": [{"spec": cell[n]["spec"], "kept": kept_S[n], "kl": cell[n]["kl"],
                                        "kl_interval": cell[n]["kl_interval"], "agree": cell[n]["agree"]} for n in on],
                          "at": {f: _at(*value) for f, value in zip(fractions, zip(middle, draws.T, strict=True),
                                                                    strict=True)},
                          "draws": draws})  # fmt: skip
    return found


def ratios(
    found: Sequence[Line], ours: str, rivals: Sequence[str], fractions: Sequence[float] = FRACTIONS
) -> list[Line]:
    """How `ours` (a method, or the best of a policy's norms) compares with the best of `rivals` (policies), by cell and
    fraction: both KLs, which methods they are, and ours / best with its paired interval. The best of a draw is chosen
    within that draw. Where either reaches no so few experts, the fraction is left out."""
    rows = []
    for (batch_size, mix), cell in _grouped(found, "batch_size", "mix").items():
        mine = [one for one in cell if ours in (one["policy"], one["method"])]
        others = [one for one in cell if one["policy"] in rivals and ours not in (one["policy"], one["method"])]
        for place, fraction in enumerate(fractions):
            a, b = (_best(group, place, fraction) for group in (mine, others))
            if a and b:
                ratio = np.exp(a["draws"] - b["draws"])
                rows.append({"batch_size": batch_size, "mix": mix, "fraction": fraction, "ours": a["method"],
                             "kl": a["kl"], "best": b["method"], "best_kl": b["kl"], "ratio": a["kl"] / b["kl"],
                             "ratio_interval": np.nanpercentile(ratio, (2.5, 97.5)).tolist()})  # fmt: skip
    return rows


def _best(group: Sequence[Line], place: int, fraction: float) -> Line | None:
    reach = [one for one in group if one["at"][fraction]]
    if not reach:
        return None
    first = min(reach, key=lambda one: one["at"][fraction]["kl"])
    draws = np.fmin.reduce([one["draws"][:, place] for one in reach])
    return {"method": first["method"], "kl": first["at"][fraction]["kl"], "draws": draws}


def _kl(cell: Sequence[Line]) -> tuple[np.ndarray, np.ndarray]:
    """Log KL of all settings of a cell, [S], and of its resamples, [S, R]."""
    steps_N = np.array(cell[0]["steps_by_sequence"], dtype=float)
    sum_SN = np.array([line["kl_by_sequence"] for line in cell]) * steps_N
    drawn = np.random.default_rng(0).integers(len(steps_N), size=(RESAMPLES, len(steps_N)))
    times_NR = np.stack([np.bincount(row, minlength=len(steps_N)) for row in drawn], 1)
    mean_S, draw_SR = sum_SN.sum(1) / steps_N.sum(), (sum_SN @ times_NR) / (steps_N @ times_NR)
    return np.log(np.maximum(mean_S, LEAST_KL)), np.log(np.maximum(draw_SR, LEAST_KL))


def _at(middle: float, draws: np.ndarray) -> Line | None:
    if np.isnan(middle):
        return None
    return {"kl": float(np.exp(middle)), "interval": np.exp(np.nanpercentile(draws, (2.5, 97.5))).tolist()}


def _grouped(lines: Iterable[Line], *keys: str) -> dict[tuple[Any, ...], list[Line]]:
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found
