"""Exact match of the settings that no other one beats, by `lynx-moe eval`."""

from pathlib import Path
from typing import Any

import numpy as np

from lynx_moe.lab.bakeoff.fronts import pareto
from lynx_moe.lab.bakeoff.grids import ORACLE
from lynx_moe.lab.bakeoff.measure import of_cell
from lynx_moe.lab.evaluation import measure as evaluation

Line = dict[str, Any]


def best(whole: Line, concurrency: int) -> list[str]:
    """The specs on the front of all methods together, controls aside, chosen on "tune": mixed batches of the size that
    is nearest to `concurrency`."""
    sizes, mixes = whole["settings"]["batch_sizes"], whole["settings"]["mixes"]
    size = min(sizes, key=lambda one: abs(one - concurrency))
    cell = of_cell(whole, "tune", size, "mixed" if "mixed" in mixes else mixes[0])
    cell = [line for line in cell if line["policy"] not in ("random", ORACLE) and line["after"] < line["before"]]
    kept, kl = (np.array(column) for column in zip(*((o["after"] / o["before"], o["kl"]) for o in cell), strict=True))
    return [cell[place]["spec"] for place in pareto(kept, np.log(np.maximum(kl, 1e-7)))]


def exact_match(whole: Line, path: Path, limit: int, concurrency: int = 16) -> Line:
    """The record of `lynx-moe eval` for vanilla and the best settings; `limit` items per task of the testbed."""
    given = {name: whole["settings"].get(name) for name in ("model", "trust_remote_code")}
    settings = evaluation.Settings(**given, tasks=("lynx_testbed",), limit=limit, concurrency=concurrency)
    return evaluation.apart(settings, ["vanilla", *best(whole, concurrency)], path)
