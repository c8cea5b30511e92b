"""`models/README.md`: all trained models side by side, drawn from their `scores.json` and nothing else."""

import json
from pathlib import Path
from typing import Any

from lynx_moe.testbed.model.families import DRAFTS, FAMILIES
from lynx_moe.testbed.report.router import BATCH_SIZES

PAGE = """\
# Trained models

Drawn by `lynx-moe testbed summary` from the `scores.json` of each model; the cards say what the columns mean.

| model | M parameters | exact, % | weakest task, % | first choice | load entropy | experts at batch 16 | uniform |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

The weights of `-unbalanced`, the twins without load balancing, are not shipped: `lynx-moe testbed train` makes them.

{drafts}{text}## How fast a batch fills the experts

Distinct experts per layer on decode tokens, all tasks mixed, percent of all experts; in brackets what uniform draws
would load. The last row is a large model.

| model | top-k | {sizes} |
|---|---:|{alignment}
{fillings}

The published figure is further from uniform draws than any balanced model here: its batches share more by themselves.

[oea]: https://arxiv.org/abs/2511.02237
"""
TEXT = "[text](text/README.md) is deeper, was trained on prose and code, and solves no exercises: see its card.\n\n"
DRAFT = "[{name}]({name}/README.md) (dense, {parameters:.2f} M) drafts for any of them; {exact:.1f} % exact.\n\n"
PUBLISHED = {"16": "38 (64)"}  # 48.8 of 128 experts, top-8


def summary(folder: Path) -> str:
    """The table of all families that are trained in `folder`, in the order of `FAMILIES`."""
    files = {name: folder / name / "scores.json" for name in FAMILIES}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    published = ["[Qwen3-30B-A3B, published][oea]", "8 of 128", *(PUBLISHED.get(str(size), "") for size in BATCH_SIZES)]
    fillings = [_filling(name, scores["router"]) for name, scores in found.items()] + [f"| {' | '.join(published)} |"]
    return PAGE.format(
        drafts="".join(_draft(folder, name) for name in DRAFTS),
        text=TEXT if (folder / "text" / "scores.json").is_file() else "",
        rows="\n".join(_row(name, scores) for name, scores in found.items()),
        sizes=" | ".join(f"batch {size}" for size in BATCH_SIZES),
        alignment="---:|" * len(BATCH_SIZES),
        fillings="\n".join(fillings),
    )


def _draft(folder: Path, name: str) -> str:
    file = folder / name / "scores.json"
    if not file.is_file():
        return ""
    scores = json.loads(file.read_text(encoding="utf-8"))
    exact = [100 * row["right"] / row["n"] for row in scores["exact"].values()]
    return DRAFT.format(name=name, parameters=scores["parameters"] / 1e6, exact=sum(exact) / len(exact))


def _filling(name: str, router: dict[str, Any]) -> str:
    num_experts = router["num_experts"]
    found, uniform = (
        [100 * router[kind][str(size)] / num_experts for size in BATCH_SIZES] for kind in ("distinct", "uniform")
    )
    cells = [f"{a:.0f} ({b:.0f})" for a, b in zip(found, uniform, strict=True)]
    return f"| {name} | {len(router['weights'])} of {num_experts} | {' | '.join(cells)} |"


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
