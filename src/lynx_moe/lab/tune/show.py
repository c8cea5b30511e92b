"""The choices as a table, and as the file that a server takes."""

import json
from pathlib import Path
from typing import Any

from lynx_moe.lab.tune.measure import CHOICE, CHOSEN_ON, VERIFIED_ON, tuned

Line = dict[str, Any]
HEAD = ("batch", "at", "policy", "experts", "KL chosen on, mnats", "KL verified on, mnats", "same top-1, %")
CAPTION = "[95 % intervals; n tokens; exact: nothing cheaper holds the bound]"


def rows(whole: Line) -> list[tuple[str, ...]]:
    return [_row(line) for line in whole["results"] if line["kind"] == CHOICE]


def write(whole: Line, path: Path) -> Path:
    """The file for `lynx-moe serve --tuned`; an old one is replaced whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(tuned(whole).told(), indent=1) + "\n", encoding="utf-8")
    return part.replace(path)


def _row(line: Line) -> tuple[str, ...]:
    head, chosen, checked = (line["batch"], str(line["concurrency"])), line[CHOSEN_ON], line[VERIFIED_ON]
    if not checked:
        return (*head, "exact", "", "", "", "")
    return (
        *head,
        line["policy"].replace(":", ":\n"),
        f"{checked['before']:.1f} → {checked['after']:.1f}",
        _kl(chosen),
        _kl(checked),
        f"{100 * checked['agree']:.1f}",
    )


def _kl(line: Line) -> str:
    low, high = (1000 * edge for edge in line["kl_interval"])
    return f"{1000 * line['kl']:.3g}\n[{low:.3g}, {high:.3g}]\nn = {line['num_tokens']:,}"
