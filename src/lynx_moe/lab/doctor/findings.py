"""What a fit says: what steps wait for, from which batch size to which a policy pays, and how much."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np

from lynx_moe.lab.doctor.cells import Cell, cells
from lynx_moe.lab.doctor.fit import Fit, fit
from lynx_moe.policies import make_policy

PAYS = 1.02  # times faster: less is nothing that an operator would see
SMALL = 0.05  # a part of a step that is not worth the name: what it waits for is something else
LOADS, ARITHMETIC, HOST = "expert loads", "arithmetic", "the host"
BOUND = {LOADS: "memory-bound", ARITHMETIC: "compute-bound", HOST: "host-bound"}
Line = dict[str, Any]


def of_record(record: Line) -> Line:
    """`findings` of a saved record, about the policy that it was made for."""
    settings = record["settings"]
    return findings(
        record["results"], *(make_policy(spec).spec for spec in (settings["policy"], settings["beside"][0]))
    )


def findings(samples: Sequence[Line], asked: str, baseline: str) -> Line:
    """All that is said of a record's samples, for one policy among them:

    fit      the formula's numbers.
    lines    one per batch size: experts before and after, `loads` (their share of the baseline's step), `waits_for`,
             the speed-up as `predicted` (decisions included), as predicted by a fit that has not seen this policy's
             times (`held_out`; None where nothing else is left to fit), and as `measured`, with its range.
    waits    what the baseline's steps wait for: [what, from batch, to batch], for all sizes within those measured.
    pays     [from, to] of every range of batch sizes in which the policy pays.
    act      the one of these ranges in which most is gained, as a server takes it (`act_from`, `act_to`); act_to is 0
             where it pays nowhere. Beyond the sizes that were measured nothing is known, and nothing acts.
    verdict  the same in one line.

    Raises ValueError for samples that do not tell loads from rows.
    """
    every = cells(samples, baseline)
    whole = fit(every)
    try:
        blind = fit([cell for cell in every if cell.policy != asked])
    except ValueError:
        blind = None
    mine = sorted((cell for cell in every if cell.policy == asked), key=lambda cell: cell.rows)
    idle = {cell.rows: cell.decision_ms for cell in every if cell.policy == baseline}
    lines = [_line(whole, blind, cell, idle[cell.rows]) for cell in mine]
    sizes = range(mine[0].rows, mine[-1].rows + 1)
    at = _between([cell.rows for cell in mine])
    own, experts = at([cell.own for cell in mine]), at([cell.experts for cell in mine])
    decides, counts = at([cell.decision_ms for cell in mine]), at([idle[cell.rows] for cell in mine])
    faster = [speedup(whole, n, own(n), experts(n), decides(n), counts(n)) for n in sizes]
    waiting = [waits_for(whole, n, own(n)) for n in sizes]
    paying = [value >= PAYS and what == LOADS for value, what in zip(faster, waiting, strict=True)]
    waits, pays = _ranges(sizes, waiting), [[low, high] for yes, low, high in _ranges(sizes, paying) if yes]
    found = {"fit": asdict(whole), "lines": lines, "waits": waits, "pays": pays, "faster": faster}
    found["act"] = _acting(pays, dict(zip(sizes, faster, strict=True)))
    return {"policy": asked, **found, "verdict": verdict(lines, waits, pays)}


def speedup(
    fitted: Fit, rows: float, before: float, after: float, decision_ms: float = 0.0, idle_ms: float = 0.0
) -> float:
    """How many times shorter a step of `rows` becomes, if it loads `after` experts a layer in place of `before`, and
    all of its decisions take `decision_ms`; what is done anyway takes `idle_ms`."""
    return (fitted.ms(rows, before) + idle_ms) / (fitted.ms(rows, after) + decision_ms)


def waits_for(fitted: Fit, rows: float, experts: float) -> str:
    """What a step waits for: expert loads, if they are more of it than the noise and than SMALL; else arithmetic, if
    more of it goes with the rows than not; else the host."""
    parts = fitted.parts(rows, experts)
    if parts.loads > max(SMALL, 3 * fitted.noise) * parts.ms:
        return LOADS
    return ARITHMETIC if parts.rows > parts.fixed else HOST


def verdict(lines: Sequence[Line], waits: Sequence[tuple[str, int, int]], pays: Sequence[Sequence[int]]) -> str:
    """One line: from which batch size to which it pays, and about how much at the best one measured; or why not."""
    last = lines[-1]["batch"]
    if not pays:
        share = {what: sum(high - low + 1 for other, low, high in waits if other == what) for what, _, _ in waits}
        most = max(share, key=lambda what: share[what])
        if most != LOADS:
            return f"does not pay here: steps are {BOUND[most]}"
        return "does not pay here: steps wait for expert loads, but the policy leaves out too few to gain anything"
    ranges = " and ".join(_range(low, high, last) for low, high in pays)
    inside = [line for line in lines if any(low <= line["batch"] <= high for low, high in pays)] or lines
    best = max(inside, key=lambda line: line["predicted"])
    rest = [f"{BOUND[what]} {_range(low, high, last)}" for what, low, high in waits if what != LOADS]
    much = f"{best['predicted']:.{1 if best['predicted'] >= 1.1 else 2}f}x"
    return "; ".join([f"pays {ranges}: about {much} at {best['batch']}", *rest])


def _acting(pays: Sequence[Sequence[int]], faster: Mapping[int, float]) -> dict[str, int]:
    """The range in which the largest gain lies."""
    if not pays:
        return {"act_from": 1, "act_to": 0}
    low, high = max(pays, key=lambda ends: max(faster[size] for size in range(ends[0], ends[1] + 1)))
    return {"act_from": low, "act_to": high}


def _line(whole: Fit, blind: Fit | None, cell: Cell, idle_ms: float) -> Line:
    change = (cell.rows, cell.own, cell.experts, cell.decision_ms, idle_ms)
    parts = whole.parts(cell.rows, cell.own)
    return {
        "batch": cell.rows,
        "before": cell.own,
        "after": cell.experts,
        "step_ms": parts.ms + idle_ms,
        "loads": parts.loads / parts.ms,
        "rows": parts.rows / parts.ms,
        "waits_for": waits_for(whole, cell.rows, cell.own),
        "decision_ms": cell.decision_ms,
        "predicted": speedup(whole, *change),
        "held_out": None if blind is None else speedup(blind, *change),
        "measured": cell.ratio[0],
        "measured_range": list(cell.ratio[1:]),
    }


def _between(rows: Sequence[int]) -> Callable[[Sequence[float]], Callable[[float], float]]:
    """Values at batch sizes, made a function of every size between: straight over the logarithm of the size."""
    places = np.log(rows)
    return lambda values: lambda size: float(np.interp(np.log(size), places, values))


def _ranges(sizes: range, values: Sequence[Any]) -> list[tuple[Any, int, int]]:
    """(value, from, to) of every run of equal values."""
    found = []
    for value, run in groupby(zip(sizes, values, strict=True), key=lambda pair: pair[1]):
        places = [size for size, _ in run]
        found.append((value, places[0], places[-1]))
    return found


def _range(low: int, high: int, last: int) -> str:
    if low == high:
        return f"at batch {low}"
    return f"from batch {low} to {high}{', the largest tried' if high == last else ''}"
