"""The demo: what Lynx does to quality (a trained model) and to speed (a published layer shape), measured here and now.

Each half runs in a process of its own, because a vLLM engine does not leave a process as it found it.
"""

import json
import os
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lynx_moe.lab.demo import quality
from lynx_moe.lab.shared import plots, record, tables, terminal
from lynx_moe.lab.shared.engine import THREADS, in_own_process, prepare
from lynx_moe.lab.speed import guard_cost, verification
from lynx_moe.lab.speed import measure as speed
from lynx_moe.policies import DEFAULT

SPEED_POLICIES = ("vanilla", DEFAULT, "priced:price=0.1", "lynx")
QUALITY_POLICIES = (SPEED_POLICIES[0], DEFAULT, "random", *SPEED_POLICIES[2:])  # random: at as many experts as DEFAULT


def bar() -> Progress:
    return Progress(
        TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), transient=False
    )


def run_speed(path: Path, options: dict[str, Any]) -> None:
    """The speed half, with a progress bar; the record goes to `path`."""
    total = len(options["batch_sizes"]) * len(options["policies"]) * (options["rounds"] + 1)
    _run(
        speed.measure,
        path,
        options,
        total,
        "loading the trained model" if options.get("model") else "loading random weights",
    )


def run_verification(path: Path, options: dict[str, Any]) -> None:
    """Steps that verify drafts, with a progress bar; the record goes to `path`."""
    turns = len(options["batch_sizes"]) * len(verification.variants(options["policies"]))
    _run(verification.measure, path, options, turns * (options["rounds"] + 1), "loading random weights")


def run_guard_cost(path: Path, options: dict[str, Any]) -> None:
    """What the quality guard costs, with a progress bar; the record goes to `path`."""
    total = len(options["batch_sizes"]) * len(options["policies"]) * (options["rounds"] + 1)
    _run(guard_cost.measure, path, options, total, "loading random weights")


def run_quality(path: Path, options: dict[str, Any]) -> None:
    """The quality half, with a progress bar; the record goes to `path`."""
    _run(quality.measure, path, options, len(options["policies"]), "loading the trained model")


def _run(measure: Any, path: Path, options: dict[str, Any], total: int, first: str) -> None:
    with bar() as progress:
        task = progress.add_task(first, total=total)
        started = 0

        def advance(message: str) -> None:
            nonlocal started
            progress.update(task, description=message, completed=started)
            started += 1

        result = measure(**options, advance=advance)
        progress.update(task, description="done", completed=total)
    record.save(result, path)


def apart(target: Any, path: Path, options: dict[str, Any], threads: int | None = None) -> dict[str, Any]:
    """Runs a half in a process of its own and returns its record. What it raises is raised here."""
    ours = [name for name in THREADS if name not in os.environ]
    prepare(threads)
    try:
        in_own_process(target, path, options)
    finally:
        for name in ours:
            del os.environ[name]  # the next one may want another number
    return record.load(path)


def demo(*, model: Path, out: Path, shape: str, layers: int | None, items_per_task: int, rounds: int) -> Path:
    """Both halves, two tables, `demo.json` and `demo.png` in `out`; returns the path of the record."""
    console = terminal.console()
    console.print("[bold]1. Quality[/]: a trained model answers held-out tasks through vLLM, 16 requests at a time")
    options = {"model": model, "policies": QUALITY_POLICIES, "items_per_task": items_per_task, "concurrency": 16}
    first = apart(run_quality, out / "quality.json", options, threads=1)  # a tiny model
    tables.show(first["model"], tables.QUALITY_HEAD, tables.quality_rows(first["summary"]), console)
    console.print("[bold]2. Speed[/]: a published layer shape with random weights (its answers mean nothing)")
    options = {
        "shape": shape,
        "layers": layers,
        "policies": SPEED_POLICIES,
        "batch_sizes": (1, 4, 8, 16),
        "rounds": rounds,
    }
    second = apart(run_speed, out / "speed.json", options)
    tables.show(second["model"], tables.SPEED_HEAD, tables.speed_rows(second["summary"]), console)
    path = record.save({"kind": "demo", "quality": first, "speed": second}, out / "demo.json")
    picture = plots.demo(json.loads(path.read_text(encoding="utf-8")), out / "demo.png")
    console.print(verdict(second["summary"], second["layers"]), highlight=False)
    console.print(f"Record: {path}   Picture: {picture}")
    return path


def verdict(summary: list[dict[str, Any]], layers: int) -> str:
    """Where the policies won and where they did not, in words; a win or a loss shows in every round."""
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in summary[1:] if row["policy"] != summary[0]["policy"]):
        rows = [row for row in summary if row["policy"] == policy and row["after"] is not None]
        kinds = {
            "faster in every round": [r["batch"] for r in rows if r["speedup_range"][0] > 1],
            "slower in every round": [r["batch"] for r in rows if r["speedup_range"][1] < 1],
            "no clear difference": [r["batch"] for r in rows if r["speedup_range"][0] <= 1 <= r["speedup_range"][1]],
        }
        parts = [f"{words} at batch {', '.join(map(str, batches))}" for words, batches in kinds.items() if batches]
        costs = [
            f"{row['decision_us']:.0f} µs a layer at batch {row['batch']} "
            f"({100 * layers * row['decision_us'] / 1e3 / row['tpot_ms']:.1f} % of its step)"
            for row in rows
        ]
        lines.append(f"{policy}: {'; '.join(parts)}. The decision takes {', '.join(costs)}.")
    return "\n".join([*lines, "A request alone has nothing to share: only policies that act alone help it."])
