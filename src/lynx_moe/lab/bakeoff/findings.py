"""The tables of a bakeoff: heads and rows of text, from its lines."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lynx_moe.lab.bakeoff.fronts import FRACTIONS, fronts, ratios
from lynx_moe.lab.bakeoff.grids import ORACLE, is_published, short
from lynx_moe.lab.bakeoff.measure import name_of, tested
from lynx_moe.policies import DEFAULT

Line = dict[str, Any]
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, head, rows
SHARES = tuple(f"{100 * fraction:.0f} %" for fraction in FRACTIONS)


def front_tables(whole: Line) -> list[Table]:
    """Two tables per cell: the lowest KL of each method at each share of experts, millinats; and what the true token's
    log-likelihood gained there, millinats, with the change of perplexity."""
    found = fronts(tested(whole))
    tables: list[Table] = []
    for mine in _cells(found):
        name = name_of(mine[0]["batch_size"], mine[0]["mix"])
        rows = [(short(one["method"]), *(_kl(at) for at in one["at"].values())) for one in mine]
        tables.append((f"KL in millinats, {name}", ("method", *SHARES), rows))
        if (exact := mine[0]["exact"]) is not None:
            rows = [(short(one["method"]), *(_gain(at) for at in one["at"].values())) for one in mine]
            title = f"True token's log-likelihood against the exact model's, in millinats (perplexity), {name}"
            tables.append((f"{title}; the exact model's perplexity: {math.exp(-exact):.4g}", ("method", *SHARES), rows))
    return tables


def comparisons(whole: Line, ours: str = DEFAULT) -> list[Table]:
    """`ours` against the best published method that needs no calibration, calibrated against calibrated, and beside the
    oracle, as far as the record has them: KL, and the true token's log-likelihood. The best published methods alone
    where it lacks `ours`."""
    found, name, tables = fronts(tested(whole)), short(ours), list[Table]()
    free, calibrated = ([one for one in found if one["calibrated"] == kind] for kind in (False, True))
    for words, group in (("without calibration", free), ("with calibration", calibrated)):
        rivals = _published(group, ours)
        if rivals and _of(group, ours):
            tables += _against_best(group, ours, rivals, f"of {name}", f", both {words}")
        elif rivals:
            title = f"Best published method {words}, KL in millinats"
            tables.append((title, ("batches", *SHARES), [_best_row(cell, rivals) for cell in _cells(group)]))
    words = " without calibration"
    if not _of(free, ours):  # it brings its calibration
        free, words = free + _of(calibrated, ours), ""
        rivals = _published(free, ours)
        if _of(free, ours) and rivals and not _published(calibrated, ours):
            tables += _against_best(free, ours, rivals, f"of {name}, calibrated", ", which was not")
    if _of(free, ORACLE) and _of(free, ours):
        title = f"KL of {name}{words}, as a multiple of the oracle's"
        tables.append((title, ("batches", *SHARES), _against(free, ours, [ORACLE], _ratio)))
    return tables


def _of(group: Sequence[Line], policy: str) -> list[Line]:
    return [one for one in group if one["policy"] == policy]


def _published(group: Sequence[Line], ours: str) -> list[str]:
    return [name for name in dict.fromkeys(one["policy"] for one in group) if is_published(name) and name != ours]


def _against_best(group: Sequence[Line], ours: str, rivals: Sequence[str], whose: str, words: str) -> list[Table]:
    title = f"KL {whose}, as a share of the best published method's{words}"
    tables: list[Table] = [(title, ("batches", *SHARES), _against(group, ours, rivals, _ratio))]
    if group[0]["exact"] is not None:
        title = f"True token's log-likelihood {whose}, above that of the same method{words}, in millinats"
        tables.append((title, ("batches", *SHARES), _against(group, ours, rivals, _more)))
    return tables


def all_comparisons(whole: Line) -> list[Table]:
    """`comparisons` of the default policy, and of each that has knobs which stayed ("priced:slope=1")."""
    names = dict.fromkeys(line["policy"] for line in tested(whole))
    fixed = [name for name in names if name.startswith(f"{DEFAULT}:")]
    first = [DEFAULT] if DEFAULT in names or not fixed else []
    return [table for ours in first + fixed for table in comparisons(whole, ours)]


def settings_table(whole: Line) -> Table:
    """The settings that were chosen on "tune", as measured on "test"."""
    rows: list[tuple[str, ...]] = []
    for one in fronts(tested(whole)):
        for setting in one["settings"]:
            row = (f"{100 * setting['kept']:.0f}", f"{1000 * setting['kl']:.2f}", f"{100 * setting['agree']:.2f}")
            known = setting["gain"] is not None
            told = (
                (f"{1000 * setting['gain']:+.2f}", f"{math.exp(-one['exact'] - setting['gain']):.4g}")
                if known
                else ("-", "-")
            )
            rows.append((name_of(one["batch_size"], one["mix"]), short(setting["spec"]), *row, *told))
    head = (
        "batches",
        "setting",
        "experts kept, %",
        "KL, mnats",
        "same top-1, %",
        "log-likelihood, mnats",
        "perplexity",
    )
    return "Settings on the fronts", head, rows


def cost_table(whole: Line) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            short(line["policy"]),
            short(line["spec"]),
            f"{line['decision_us']:.0f} [{line['quartiles_us'][0]:.0f}, {line['quartiles_us'][1]:.0f}]",
        )
        for line in whole["results"]
        if line["kind"] == "cost"
    ]
    size = next((line["rows"] for line in whole["results"] if line["kind"] == "cost"), 16)
    return f"A decision: one layer, {size} rows, median [quartiles]", ("policy", "setting", "microseconds"), rows


def _cells(found: Sequence[Line]) -> list[list[Line]]:
    cells = dict.fromkeys((one["batch_size"], one["mix"]) for one in found)
    return [[one for one in found if (one["batch_size"], one["mix"]) == cell] for cell in cells]


def _against(
    group: Sequence[Line], ours: str, rivals: Sequence[str], cell_of: Callable[[Line, bool], str]
) -> list[tuple[str, ...]]:
    rows = []
    for cell in _cells(group):
        at = {row["fraction"]: row for row in ratios(cell, ours, rivals)}
        name = name_of(cell[0]["batch_size"], cell[0]["mix"])
        named = ORACLE not in rivals
        rows.append((name, *(cell_of(at[fraction], named) if fraction in at else "-" for fraction in FRACTIONS)))
    return rows


def _best_row(cell: Sequence[Line], rivals: Sequence[str]) -> tuple[str, ...]:
    return (name_of(cell[0]["batch_size"], cell[0]["mix"]), *(_best(cell, rivals, fraction) for fraction in FRACTIONS))


def _best(cell: Sequence[Line], rivals: Sequence[str], fraction: float) -> str:
    reach = [one for one in cell if one["policy"] in rivals and one["at"][fraction]]
    if not reach:
        return "-"
    first = min(reach, key=lambda one: one["at"][fraction]["kl"])
    return f"{first['method']}: {_kl(first['at'][fraction])}"


def _kl(at: Line | None) -> str:
    if at is None:
        return "-"
    low, high = (_digits(1000 * edge) for edge in at["interval"])
    return f"{_digits(1000 * at['kl'])} [{low}, {high}]"


def _gain(at: Line | None) -> str:
    if at is None:
        return "-"
    return f"{_signed(at['gain'], at['gain_interval'])} ({100 * math.expm1(-at['gain']):+.1f} %)"


def _ratio(row: Line, named: bool) -> str:
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]" + (_name(row) if named else "")


def _more(row: Line, named: bool) -> str:
    return _signed(row["more"], row["more_interval"]) + (_name(row) if named else "")


def _name(row: Line) -> str:
    """Of the best method, and the share of experts at which it was met where that is another one."""
    elsewhere = "" if row["share"] == row["fraction"] else f" (at {100 * row['share']:.0f} %)"
    return f" {row['best']}{elsewhere}"


def _signed(value: float, interval: Sequence[float]) -> str:
    """In millinats."""
    low, high = (f"{1000 * edge:+.1f}" for edge in interval)
    return f"{1000 * value:+.1f} [{low}, {high}]"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
