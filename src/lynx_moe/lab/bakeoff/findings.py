"""The tables of a bakeoff: heads and rows of text, from its lines."""

from collections.abc import Sequence
from typing import Any

from lynx_moe.lab.bakeoff.fronts import FRACTIONS, fronts, ratios
from lynx_moe.lab.bakeoff.grids import is_published, needs_calibration, short
from lynx_moe.lab.bakeoff.measure import tested

Line = dict[str, Any]
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, head, rows
SHARES = tuple(f"{100 * fraction:.0f} %" for fraction in FRACTIONS)


def front_tables(whole: Line) -> list[Table]:
    """A table per cell: the lowest KL of each method at each share of experts, millinats."""
    found = fronts(tested(whole))
    tables = []
    for size, mix in dict.fromkeys((one["batch_size"], one["mix"]) for one in found):
        mine = [one for one in found if (one["batch_size"], one["mix"]) == (size, mix)]
        rows = [(one["method"], *(_kl(at) for at in one["at"].values())) for one in mine]
        tables.append((name_of(size, mix), ("method", *SHARES), rows))
    return tables


def best_table(whole: Line, ours: str | None = None) -> Table:
    """The lowest KL of published methods that need no calibration, by cell; with `ours`, how that compares."""
    found = fronts(tested(whole))
    rivals = [name for name in dict.fromkeys(one["policy"] for one in found)
              if is_published(name) and not needs_calibration(name)]  # fmt: skip
    rows = []
    for size, mix in dict.fromkeys((one["batch_size"], one["mix"]) for one in found):
        cell = [one for one in found if (one["batch_size"], one["mix"]) == (size, mix)]
        if ours is None:
            rows.append((name_of(size, mix), *(_best(cell, rivals, fraction) for fraction in FRACTIONS)))
            continue
        against = {row["fraction"]: row for row in ratios(cell, ours, rivals)}
        rows.append((name_of(size, mix), *(_ratio(against.get(fraction)) for fraction in FRACTIONS)))
    title = "Best published method without calibration" + (f", against {ours}" if ours else "")
    return title, ("batches", *SHARES), rows


def settings_table(whole: Line) -> Table:
    """The settings that were chosen on "tune", as measured on "test"."""
    rows: list[tuple[str, ...]] = []
    for one in fronts(tested(whole)):
        for setting in one["settings"]:
            row = (f"{100 * setting['kept']:.0f}", f"{1000 * setting['kl']:.2f}", f"{100 * setting['agree']:.2f}")
            rows.append((name_of(one["batch_size"], one["mix"]), short(setting["spec"]), *row))
    return "Settings on the fronts", ("batches", "setting", "experts kept, %", "KL, mnats", "same top-1, %"), rows


def cost_table(whole: Line) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            line["policy"],
            short(line["spec"]),
            f"{line['decision_us']:.0f} [{line['quartiles_us'][0]:.0f}, {line['quartiles_us'][1]:.0f}]",
        )
        for line in whole["results"]
        if line["kind"] == "cost"
    ]
    size = next((line["rows"] for line in whole["results"] if line["kind"] == "cost"), 16)
    return f"A decision: one layer, {size} rows, median [quartiles]", ("policy", "setting", "microseconds"), rows


def name_of(size: int, mix: str) -> str:
    return f"batch {size}, {'one group' if mix == 'one' else 'mixed'}"


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


def _ratio(row: Line | None) -> str:
    if row is None:
        return "-"
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}] of {row['best']}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
