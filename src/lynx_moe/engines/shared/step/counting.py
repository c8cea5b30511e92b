"""What a plan has counted: steps, rows and experts, by the kind of the step."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.metrics import KINDS, Counters, HostCounters, Kind, Stats, layer_stats
from lynx_moe.engines.shared.step.rows import StepRows
from lynx_moe.engines.shared.step.tiers import Tiers


class Counted:
    """The sums since `reset_stats`. A step counts once, however often the model runs in it."""

    counters: Counters
    counted: int | None = None  # the kind of this step, where its experts count

    def __init__(self) -> None:
        self.tiers = Tiers()

    def count_on(self, num_layers: int, device: torch.device) -> None:
        """All layers are known: counting starts."""
        self.counters = HostCounters(num_layers) if device.type == "cpu" else Counters(num_layers, device)
        self.reset_sums()

    def count(self, rows: StepRows, *, acts: bool, known: bool) -> None:
        """A step begins, in which the policy acts or not; known: its policies know prices."""
        kind = rows.kind
        self.counted = KINDS.index(kind.value) if acts else None
        self.counters.begin(self.counted)
        if kind is Kind.IDLE:
            return
        self.steps[kind.value] += 1
        self.acted[kind.value] += acts
        counts = (rows.num_rows, rows.num_decode_rows if acts else 0, rows.num_exact_rows)
        for column, count in enumerate(counts):
            self.row_sums[kind.value][column] += count
        self.tiers.add(rows.tiers() if acts and known else {})

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """In here a pass of this step runs that does not stay."""
        self.counters.begin(None)
        try:
            yield
        finally:
            self.counters.begin(self.counted)

    def reset_sums(self) -> None:
        self.counters.reset()
        self.steps = {kind.value: 0 for kind in Kind if kind is not Kind.IDLE}
        self.acted = dict.fromkeys(self.steps, 0)  # of these, where the policy could do something
        self.row_sums = {kind: [0, 0, 0] for kind in self.steps}
        self.decisions, self.decision_seconds = 0, 0.0
        self.tiers.reset()
        self.last_log = (time.monotonic(), 0)

    def told(self, layers: Sequence[Layer], bypassed: dict[str, str], **more: Any) -> Stats:
        """The sums as `Stats`, with what else is known."""
        counted = layer_stats([layer.name for layer in layers], self.counters.read(), self.acted, self.row_sums)
        return Stats(
            steps=dict(self.steps),
            layers=tuple(layer for layer in counted if layer.name not in bypassed),
            bypassed_layers=dict(bypassed),
            **more,
        )
