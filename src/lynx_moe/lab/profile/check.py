"""Which policies the measured ranks suggest, and what these really do in batches that decode."""

from collections.abc import Sequence
from typing import Any

from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.fidelity.measure import loads, summary
from lynx_moe.lab.profile.measures.sensitivity import NAMES, Session

Line = dict[str, Any]
MOST_CHECKED = 8  # policies at most, see `candidates`


def kept_enough(ranks: Sequence[Line], tolerance: float) -> int:
    """The least r for which keeping only each token's first r experts costs less than `tolerance`, by the upper end of
    the interval; top_k where none does."""
    kept = [line for line in ranks if line["what"] == "keep"]
    good = [line["rank"] for line in kept if line["kl_interval"][1] <= tolerance]
    return min(good, default=len(kept) + 1)


def candidates(ranks: Sequence[Line], tolerance: float) -> list[str]:
    """Three prices; Lynx as it comes and with favourites pinned; and batch-wise unions of first experts, up to what
    ranks allow."""
    enough = min(kept_enough(ranks, tolerance), len([line for line in ranks if line["what"] == "deny"]) - 1)
    firsts = sorted({k0 for k0 in (1, (enough + 1) // 2, enough) if k0 > 0})
    prices = (f"priced:price={price}" for price in (0.01, 0.03, 0.1))
    return [*prices, "lynx", "lynx:pin_top1=true", *(f"oea:k0={k0}" for k0 in firsts)]


def check(session: Session, specs: Sequence[str]) -> list[Line]:
    """The policies in lockstep, each reading the cache that it wrote, as in serving."""
    runs = [session.run(spec) for spec in specs]
    found = [decode(session.model, batch, runs, "own") for batch in session.batches]
    lines = []
    for run, effects in zip(runs, zip(*found, strict=True), strict=True):
        one = summary(session.batches, effects, NAMES)
        one = {name: value for name, value in one.items() if not name.endswith("by_sequence") and name != "groups"}
        lines.append({"policy": run.policy.spec} | one | loads(run))
    return lines


def suggested(checked: Sequence[Line], tolerance: float) -> Line | None:
    """The policy that loads the fewest experts among those that cost at most `tolerance`; None where none does or
    none loads fewer experts."""
    good = [line for line in checked if line["kl_interval"][1] <= tolerance and line["after"] < line["before"]]
    return min(good, key=lambda line: line["after"], default=None)
