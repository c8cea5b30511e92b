"""The table of a record of `lynx-moe speculation`, for a terminal and for Markdown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_moe.engines.shared.options import EXACT
from lynx_moe.lab.shared import tables
from lynx_moe.lab.shared.intervals import mean_difference, proportion

KIND = "speculation"
HEAD = (
    "batch",
    "drafts by",
    "verify",
    "policy",
    "exact match, %",
    "paired difference",
    "output tokens",
    "accepted length",
    "of exact verification's",
    "accepted by depth, %",
    "experts a step",
    "experts a token",
    "KL, millinats",
)
CAPTION = "[95 % intervals]"
RESAMPLES = 2000
Line = dict[str, Any]


def rows(results: Sequence[Line]) -> list[tuple[str, ...]]:
    """A row per line, by batch size. Exact match and output tokens are compared with the first line of the same batch,
    accepted length with the first of the same drafter that verifies exactly; pairs are of the same exercise."""
    found = []
    for batch in sorted({line["batch"] for line in results}):
        mine = [line for line in results if line["batch"] == batch]
        for line in mine:
            alike = [other for other in mine if (other["drafter"], other["verify"]) == (line["drafter"], EXACT)]
            found.append((str(batch), *_row(line, mine[0], alike[0] if alike else None)))
    return found


def _row(line: Line, base: Line, exact: Line | None) -> tuple[str, ...]:
    drafts = any(line["verifications"])
    loads = line["loads"]
    return (
        line["drafter"],
        line["verify"] if drafts else "-",
        line["policy"],
        f"{_percent(sum(line['right']) / line['n'])} {_edges(proportion(line['right']), 100)}",
        _difference(line["right"], base["right"], 100) if line is not base else "",
        f"{sum(line['length']) / line['n']:.2f}"
        + (f", {_difference(line['length'], base['length'], 1, 2)}" if line is not base else ""),
        f"{accepted_length(line):.2f} {_edges(_resampled(line), 1, 2)}" if drafts else "1",
        f"{accepted_length(line) / accepted_length(exact):.3f} {_edges(_resampled(line, exact), 1, 3)}"
        if drafts and exact is not None and line is not exact
        else "",
        " ".join(_percent(share) for share in by_depth(line)) if drafts else "",
        _experts(loads),
        _a_token(loads),
        _kl(line.get("harm")),  # records before it was measured have none
    )


def accepted_length(line: Line) -> float:
    """Committed tokens of a verification, mean over all of them."""
    return 1 + sum(map(sum, line["accepted"])) / max(1, sum(line["verifications"]))


def by_depth(line: Line) -> list[float]:
    """Of the drafts that had a token at a depth, the share in which it was accepted."""
    drafted, accepted = (np.sum(line[name], axis=0) for name in ("drafted", "accepted"))
    found: list[float] = (accepted / np.maximum(drafted, 1)).tolist()
    return found


def _experts(loads: Line) -> str:
    """By the model's own routing and as loaded, the latter with its interval."""
    if loads["after"] is None:
        return "-"
    edges = f" {_edges(loads['after_interval'], 1)}" if loads["after_interval"] else ""
    return f"{loads['before']:.1f} → {loads['after']:.1f}{edges}"


def _a_token(loads: Line) -> str:
    if loads["a_token"] is None:
        return "-"
    return f"{loads['a_token']:.2f}" + (
        f" {_edges(loads['a_token_interval'], 1, 2)}" if loads["a_token_interval"] else ""
    )


def _kl(harm: Line | None) -> str:
    """Of a row that may be remapped, mean."""
    if harm is None or harm["kl"] is None:
        return ""
    return f"{1e3 * harm['kl']:.2f}" + (f" {_edges(harm['kl_interval'], 1e3, 2)}" if harm["kl_interval"] else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _edges(edges: Sequence[float], scale: float, digits: int = 1, sign: str = "") -> str:
    return f"[{', '.join(f'{scale * edge:{sign}.{digits}f}' for edge in edges)}]"


def _difference(values: Sequence[float], base: Sequence[float], scale: float, digits: int = 1) -> str:
    """Of pairs, with the interval."""
    mean = scale * (sum(values) - sum(base)) / len(values)
    return f"{mean:+.{digits}f} {_edges(mean_difference(values, base), scale, digits, '+')}"


def page(results: Sequence[Line]) -> str:
    """The table as Markdown."""
    return tables.markdown(HEAD, rows(results)) + "\n"


def _resampled(line: Line, base: Line | None = None) -> list[float]:
    """95 % interval of the accepted length, or of its ratio to `base`'s, by bootstrap over the exercises."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(line["n"], size=(RESAMPLES, line["n"]))

    def lengths(of: Line) -> np.ndarray:
        accepted, verified = np.sum(of["accepted"], axis=1), np.array(of["verifications"])
        found: np.ndarray = 1 + accepted[drawn].sum(1) / np.maximum(verified[drawn].sum(1), 1)
        return found

    values = lengths(line) if base is None else lengths(line) / lengths(base)
    low, high = np.percentile(values, (2.5, 97.5))
    return [float(low), float(high)]
