"""A doctor's record as a table, a picture, and a file for programs. Nothing is measured here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.doctor.cells import Cell, cells
from lynx_moe.lab.doctor.findings import ARITHMETIC, HOST, LOADS, of_record
from lynx_moe.lab.shared import record as records
from lynx_moe.lab.shared.plots import COLORS, save
from lynx_moe.policies import make_policy

HEAD = ("batch", "experts", "step, ms", "loads, %", "waits for", "decides, ms", "predicted", "held out", "measured")
CAPTION = (
    "step, loads: of the baseline · held out: by a fit that has not seen this policy's times · [range of the rounds]"
)
MARKS = {LOADS: COLORS[1], ARITHMETIC: COLORS[2], HOST: COLORS[0]}


def table(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows under HEAD; speed-ups count the time of the decisions."""
    return [
        (
            str(line["batch"]),
            f"{line['before']:.1f} → {line['after']:.1f}",
            f"{line['step_ms']:.2f}",
            f"{100 * line['loads']:.0f}",
            line["waits_for"],
            f"{line['decision_ms']:.2f}",
            f"{line['predicted']:.2f}x",
            "-" if line["held_out"] is None else f"{line['held_out']:.2f}x",
            f"{line['measured']:.2f}x [{line['measured_range'][0]:.2f}, {line['measured_range'][1]:.2f}]",
        )
        for line in found["lines"]
    ]


def formula(found: dict[str, Any]) -> str:
    """The fit in a line."""
    numbers = found["fit"]
    left = f"{numbers['a']:.3g} + {numbers['b']:.3g} experts + {numbers['e']:.3g} rows"
    right = f"{numbers['c']:.3g} + {numbers['d']:.3g} rows"
    text = f"max({left}, {right})" if numbers["c"] or numbers["d"] else left
    return f"step, ms = {text}; off by {100 * numbers['error']:.1f} % (noise {100 * numbers['noise']:.1f} %)"


def save_findings(record: dict[str, Any], path: Path) -> Path:
    """What `of_record` says, as JSON, with the settings and the machine. Returns the path."""
    whole = {"kind": "doctor findings", **{key: record[key] for key in ("settings", "environment")}}
    return records.save(whole | of_record(record), path)


def draw(record: dict[str, Any], path: Path) -> Path:
    """Left the baseline's step by what it waits for, right the speed-up as predicted and as measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found, settings = of_record(record), record["settings"]
    baseline = make_policy(settings["beside"][0]).spec
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6))
    _step(left, found, [cell for cell in cells(record["results"], baseline) if cell.policy == baseline])
    left.set_title(f"What a step waits for under {baseline}", fontsize=10)
    _speedup(right, found)
    right.set_title(f"{found['policy']} against {baseline}", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        sizes = [line["batch"] for line in found["lines"]]
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(f"{Path(settings['model']).name}: {found['verdict']}", fontsize=10)
    save(figure, record["environment"], path)
    plt.close(figure)
    return path


def _step(axes: Any, found: dict[str, Any], baseline: Sequence[Cell]) -> None:
    lines = found["lines"]
    sizes, whole = [line["batch"] for line in lines], [line["step_ms"] for line in lines]
    shares = [[line[name] * ms for line, ms in zip(lines, whole, strict=True)] for name in ("loads", "rows")]
    fixed = [ms - a - b for ms, a, b in zip(whole, *shares, strict=True)]
    labels = ("the same for every step", "goes with the rows", "goes with distinct experts")
    axes.stackplot(sizes, fixed, shares[1], shares[0], labels=labels, colors=list(MARKS.values())[::-1], alpha=0.6)
    axes.plot(
        [cell.rows for cell in baseline], [cell.ms + cell.decision_ms for cell in baseline], "ko", label="measured"
    )
    axes.set_ylabel("TPOT, ms")
    axes.set_ylim(bottom=0)


def _speedup(axes: Any, found: dict[str, Any]) -> None:
    lines = found["lines"]
    sizes = [line["batch"] for line in lines]
    axes.plot(range(sizes[0], sizes[-1] + 1), found["faster"], color=COLORS[1], label="predicted")
    middle = [line["measured"] for line in lines]
    spread = [[line["measured"] - line["measured_range"][0] for line in lines],
              [line["measured_range"][1] - line["measured"] for line in lines]]  # fmt: skip
    axes.errorbar(sizes, middle, spread, fmt="o", color="black", capsize=3, label="measured, range of the rounds")
    axes.axhline(1.0, color="#666666", linewidth=0.8)
    axes.set_ylabel("times faster, decisions included")
