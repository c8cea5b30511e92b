"""What each method costs at a given share of experts, from the lines of a bakeoff: fronts, and who is ahead.

A method's front are its settings that no other one beats in both experts kept and KL. Between neighbours on it that are
at most GAP apart, KL is interpolated geometrically, and the true token's log-likelihood in a line. In a wider gap
where other settings were measured, and beyond the last one, KL stays: nothing better was found. In holes wider than GAP
without any setting nothing is said. Settings that keep 99.9 % and more are no part of a front.
Intervals are 95 %, bootstrap over sequences: all methods of a cell are drawn with the same sequences, so that ratios
between methods are paired. A cell is a batch size with a mix of groups.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Line = dict[str, Any]
FRACTIONS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
GAP = 0.05  # of all experts; settings further apart say nothing of what is between them
RESAMPLES, LEAST_KL, SAME = 500, 1e-7, 0.999


class Drawn(NamedTuple):
    """Settings of a cell by resamples: log KL, and what the true token's log-likelihood gained; [S] or [S, R]."""

    log_kl: np.ndarray
    gain: np.ndarray


def pareto(kept: np.ndarray, log_kl: np.ndarray) -> list[int]:
    """The places of the front's settings, from few experts to many: KL falls along it."""
    found: list[int] = []
    for place in np.lexsort((log_kl, kept)).tolist():
        if not found or log_kl[place] < log_kl[found[-1]]:
            found.append(place)
    return found


def lowest(
    kept: np.ndarray, log_kl: np.ndarray, gain: np.ndarray, fractions: Sequence[float], blank: bool = False
) -> np.ndarray:
    """[2, F]: log KL of the front at each fraction, and the gain there; NaN where no setting keeps so few. Between
    neighbours at most GAP apart both are interpolated; in a wider gap they stay, and where `blank` they are NaN in
    holes wider than GAP, in which no setting lies at all."""
    on, asked, all_kept = pareto(kept, log_kl), np.array(fractions), np.sort(kept)
    found = np.array([np.interp(asked, kept[on], value[on], left=np.nan) for value in (log_kl, gain)])
    for place, (low, high) in enumerate(pairwise(kept[on])):
        if high - low > GAP + 1e-9:
            inside = (asked > low + 1e-9) & (asked < high - 1e-9)
            found[:, inside] = [[log_kl[on[place]]], [gain[on[place]]]]
    if blank:
        for low, high in pairwise(all_kept):
            if high - low > GAP + 1e-9:
                found[:, (asked > low + 1e-9) & (asked < high - 1e-9)] = np.nan
    return found


def covering(kept: np.ndarray, log_kl: np.ndarray, apart: float) -> list[int]:
    """The places of the front's settings, and of others in gaps wider than `apart`, as few as leave no wider hole where
    there are any: from few experts to many."""
    on, chosen = pareto(kept, log_kl), []
    for low, high in pairwise(on):
        chosen.append(low)
        inner = [place for place in np.argsort(kept, kind="stable") if kept[low] < kept[place] < kept[high]]
        while kept[high] - kept[chosen[-1]] > apart + 1e-9 and inner:
            near = [place for place in inner if kept[place] - kept[chosen[-1]] <= apart + 1e-9]
            chosen.append(near[-1] if near else inner[0])
            inner = [place for place in inner if kept[place] > kept[chosen[-1]]]
    return [int(place) for place in (*chosen, on[-1])]


class Curve(NamedTuple):
    """All settings of a method in a cell: experts kept, [S], and what `Drawn` has of them, measured and resampled."""

    kept: np.ndarray
    mean: Drawn
    drawn: Drawn

    def at(self, fractions: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """What `lowest` says, [2, F], and of every resample, [2, R, F]."""
        columns = zip(self.drawn.log_kl.T, self.drawn.gain.T, strict=True)
        draws = np.array([lowest(self.kept, kl, gain, fractions) for kl, gain in columns]).swapaxes(0, 1)
        return lowest(self.kept, *self.mean, fractions, blank=True), draws


def fronts(lines: Iterable[Line], fractions: Sequence[float] = FRACTIONS) -> list[Line]:
    """A line per cell and method: `calibrated`, whether it reads a calibration; `settings` on the front (spec, kept,
    kl, gain); `exact`, the true token's log-likelihood under the exact model; `at`: for each fraction the lowest KL,
    in nats, and the gain in log-likelihood there, with intervals (None where nothing is known), and `draws` of
    the logarithm of KL and of the gain, [2, R, F]; `curve`, which tells the same of any other fraction."""
    found = []
    for (batch_size, mix), cell in grouped(lines, "batch_size", "mix").items():
        mean, drawn = _draws(cell)
        kept_S = np.array([line["after"] / line["before"] for line in cell])
        for (method,), _ in grouped(cell, "method").items():
            every = np.flatnonzero([line["method"] == method for line in cell])
            mine = every[kept_S[every] < SAME]
            if not len(mine):
                continue
            on = mine[pareto(kept_S[mine], mean.log_kl[mine])]
            curve = Curve(kept_S[every], *(Drawn(*(value[every] for value in each)) for each in (mean, drawn)))
            middle, draws = curve.at(fractions)
            found.append({"batch_size": batch_size, "mix": mix, "method": method, "policy": cell[mine[0]]["policy"],
                          "calibrated": "data=" in cell[mine[0]]["spec"], "exact": cell[mine[0]].get("exact"),
                          "settings": [{"spec": cell[n]["spec"], "kept": kept_S[n], "gain": cell[n].get("gain")}
                                       | {key: cell[n][key] for key in ("kl", "kl_interval", "agree")} for n in on],
                          "at": {f: _at(middle[:, n], draws[:, :, n]) for n, f in enumerate(fractions)},
                          "draws": draws, "curve": curve})  # fmt: skip
    return found


def ratios(
    found: Sequence[Line], ours: str, rivals: Sequence[str], fractions: Sequence[float] = FRACTIONS
) -> list[Line]:
    """How `ours` (a method, or the best of a policy's norms) compares with the best of `rivals` (policies), by cell and
    fraction: both KLs, which methods they are, and ours / best with its paired interval; `more`: what the true token's
    log-likelihood is above that of the best, with its paired interval. The best of a draw, by KL, is chosen within that
    draw. A rival of which nothing is known at a fraction, since its knobs are coarse, is met at those of its settings
    that are at most GAP away (`share`), and counts where it stands better there. Where nothing is known of either, the
    fraction is left out."""
    rows = []
    for (batch_size, mix), cell in grouped(found, "batch_size", "mix").items():
        mine = [one for one in cell if ours in (one["policy"], one["method"])]
        others = [one for one in cell if one["policy"] in rivals and ours not in (one["policy"], one["method"])]
        for fraction in fractions:
            known = [one for one in others if one["at"][fraction]]
            met = [(fraction, known)] + [
                (setting["kept"], [one])
                for one in others
                if one not in known
                for setting in one["settings"]
                if abs(setting["kept"] - fraction) <= GAP
            ]
            pairs = [_compared(mine, group, share) for share, group in met]
            if worst := max((row for row in pairs if row), key=lambda row: row["ratio"], default=None):
                rows.append({"batch_size": batch_size, "mix": mix, "fraction": fraction, **worst})
    return rows


def _compared(mine: Sequence[Line], others: Sequence[Line], share: float) -> Line | None:
    """The best of both at a share of experts; None where nothing is known of either."""
    a, b = _best(mine, share), _best(others, share)
    if a is None or b is None:
        return None
    ratio, more = np.exp(a["draws"][0] - b["draws"][0]), a["draws"][1] - b["draws"][1]
    return {"share": share, "ours": a["method"], "kl": a["kl"], "best": b["method"], "best_kl": b["kl"]} | {
        "ratio": a["kl"] / b["kl"],
        "ratio_interval": _edges(ratio),
        "more": a["gain"] - b["gain"],
        "more_interval": _edges(more),
    }


def grouped(lines: Iterable[Line], *keys: str) -> dict[tuple[Any, ...], list[Line]]:
    """The lines by what they have under these keys, in their order."""
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in keys), []).append(line)
    return found


def _best(group: Sequence[Line], share: float) -> Line | None:
    told = [(one, *one["curve"].at((share,))) for one in group]
    reach = [(one, _at(middle[:, 0], draws[:, :, 0]), draws[:, :, 0]) for one, middle, draws in told]
    known = [(one, at, draws) for one, at, draws in reach if at]
    if not known:
        return None
    first, at, _ = min(known, key=lambda each: each[1]["kl"])
    kl_MR, gain_MR = np.array([draws for _, _, draws in known]).swapaxes(0, 1)
    least_R = np.where(np.isnan(kl_MR), np.inf, kl_MR).argmin(0)[None]
    draws = [np.take_along_axis(value, least_R, 0)[0] for value in (kl_MR, gain_MR)]
    return {"method": first["method"], **at, "draws": draws}


def _draws(cell: Sequence[Line]) -> tuple[Drawn, Drawn]:
    """Of all settings of a cell: as they were measured, and resampled. Records from before log-likelihood was kept have
    none: NaN."""
    steps_N = np.array(cell[0]["steps_by_sequence"], dtype=float)
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(steps_N), size=(RESAMPLES, len(steps_N)))
    times_NR = np.stack([np.bincount(row, minlength=len(steps_N)) for row in drawn], 1)

    def means(name: str) -> tuple[np.ndarray, np.ndarray]:
        unknown = [np.nan] * len(steps_N)
        sum_SN = np.array([line.get(f"{name}_by_sequence", unknown) for line in cell], dtype=float) * steps_N
        return sum_SN.sum(1) / steps_N.sum(), (sum_SN @ times_NR) / (steps_N @ times_NR)

    (kl_S, kl_SR), (gain_S, gain_SR) = means("kl"), means("gain")
    logs = [np.log(np.maximum(value, LEAST_KL)) for value in (kl_S, kl_SR)]
    return Drawn(logs[0], gain_S), Drawn(logs[1], gain_SR)


def _at(middle: np.ndarray, draws: np.ndarray) -> Line | None:
    """middle [2], draws [2, R]."""
    if np.isnan(middle[0]):
        return None
    found = {"kl": float(np.exp(middle[0])), "interval": np.exp(_edges(draws[0])).tolist()}
    return found | {"gain": float(middle[1]), "gain_interval": _edges(draws[1])}


def _edges(draws: np.ndarray) -> list[float]:
    if np.isnan(draws).all():
        return [np.nan, np.nan]
    edges: list[float] = np.nanpercentile(draws, (2.5, 97.5)).tolist()
    return edges
