"""What a step of the GPU check is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Measure = Callable[[bool], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """measure(dry) -> the record, in a process of its own; limit: its seconds on a GPU.

    apart: what takes its place where graphs cannot be swapped, or when it has failed before. timed: nothing else may
    run meanwhile."""

    measure: Measure
    limit: int
    apart: Measure | None = None
    timed: bool = True
