"""`models/README.md`: all trained models side by side, drawn from their `scores.json` and nothing else."""

import json
from pathlib import Path
from typing import Any

from lynx_moe.testbed.families import FAMILIES

PAGE = """\
# Trained models

Drawn by `lynx-moe testbed summary` from the `scores.json` of each model; the cards say what the columns mean.

| model | M parameters | exact, % | weakest task, % | first choice | load entropy | experts at batch 16 | uniform |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

For comparison, Qwen3-30B-A3B loads 48.8 of 128 experts (38 %) at batch 16 ([arXiv:2511.02237][oea]).

[oea]: https://arxiv.org/abs/2511.02237
"""


def summary(folder: Path) -> str:
    """The table of all families that are trained in `folder`, in the order of `FAMILIES`."""
    files = {name: folder / name / "scores.json" for name in FAMILIES}
    rows = [_row(name, json.loads(file.read_text())) for name, file in files.items() if file.is_file()]
    return PAGE.format(rows="\n".join(rows))


def _row(name: str, scores: dict[str, Any]) -> str:
    router = scores["router"]
    exact = {task: 100 * row["right"] / row["n"] for task, row in scores["exact"].items()}
    weakest = min(exact, key=lambda task: exact[task])
    distinct, num_experts = router["distinct"]["16"], router["num_experts"]
    cells = (
        f"[{name}]({name}/README.md)",
        f"{scores['parameters'] / 1e6:.2f}",
        f"{sum(exact.values()) / len(exact):.1f}",
        f"{weakest} {exact[weakest]:.1f}",
        f"{router['top1_mass']:.2f}",
        f"{router['load_entropy']:.3f}",
        f"{distinct:.1f} of {num_experts} ({100 * distinct / num_experts:.0f} %)",
        f"{router['uniform']['16']:.1f}",
    )
    return f"| {' | '.join(cells)} |"
