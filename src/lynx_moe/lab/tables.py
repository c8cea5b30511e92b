"""Records as tables, for a terminal (rich) and for Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

QUALITY_HEAD = ("policy", "exact match, %", "paired difference", "distinct experts")
SPEED_HEAD = ("batch", "policy", "TPOT, ms", "tokens/s", "speed-up", "distinct experts")


def quality_rows(summary: Iterable[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            row["spec"],
            f"{100 * row['exact_match']:.1f} [{100 * row['interval'][0]:.1f}, {100 * row['interval'][1]:.1f}]",
            f"{100 * row['difference']:+.1f} [{100 * row['difference_interval'][0]:+.1f}, "
            f"{100 * row['difference_interval'][1]:+.1f}]",
            _experts(row),
        )
        for row in summary
    ]


def speed_rows(summary: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Medians over the rounds, ± half their range."""
    baseline = summary[0]["policy"]
    return [
        (
            str(row["batch"]),
            row["policy"],
            f"{row['tpot_ms']:.1f} ±{_half(row['tpot_range_ms']):.1f}",
            f"{row['tokens_per_s']:.0f}",
            "baseline" if row["policy"] == baseline else f"{row['speedup']:.2f}x ±{_half(row['speedup_range']):.2f}",
            _experts(row),
        )
        for row in summary
    ]


def _half(edges: Sequence[float]) -> float:
    return (edges[1] - edges[0]) / 2


def _experts(row: dict[str, Any]) -> str:
    return "-" if row["after"] is None else f"{row['before']:.1f} → {row['after']:.1f}"


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    caption = "± half the range over the rounds" if head[0] == "batch" else "[95 % intervals]"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0)
    for name in head:
        table.add_column(name, no_wrap=name == "policy")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row, end_section=following is not None and head[0] == "batch" and following[0] != row[0])
    console.print(table)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
