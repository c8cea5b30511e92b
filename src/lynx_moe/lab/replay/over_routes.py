"""Policies on a trace of routes: batches of several sizes and mixes are drawn from it, and replayed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lynx_moe.lab.replay import routes
from lynx_moe.lab.replay.measure import Setting, replay


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Of each size and mix so many batches, which decode `steps` tokens each."""

    batch_sizes: tuple[int, ...] = (4, 16, 64)
    mixes: tuple[str, ...] = ("mixed",)
    batches: int = 24
    steps: int = 16
    seed: int = 0


def replay_routes(path: Path, policies: Sequence[str], draw: Draw, setting: Setting) -> list[dict[str, Any]]:
    """The lines of `replay` for every size, mix and policy, each with what it was drawn by.

    Raises ValueError as `load`, `draw` and `replay` do.
    """
    trace, lines = routes.load(path), []
    for batch in draw.batch_sizes:
        for mix in draw.mixes:
            drawn = routes.draw(trace, batch, mix, draw.steps, draw.batches, draw.seed)
            drawn_by = {**asdict(setting), "batch": batch, "tasks": mix, "steps": draw.steps, "seed": draw.seed}
            lines += [{**drawn_by, **line} for line in replay(drawn, policies, setting)]
    return lines
