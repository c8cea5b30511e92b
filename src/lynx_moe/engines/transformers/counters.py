"""Counters that tell a step's kind from its masks on the device: no step waits, and torch.compile can trace it."""

import torch
from torch import Tensor

from lynx_moe.engines.shared.metrics import KINDS, Counters, Kind
from lynx_moe.engines.transformers.rows import StepRows

STEPS = tuple(kind for kind in Kind if kind is not Kind.IDLE)


class StepCounters(Counters):
    """Adds what the layers share: steps by kind, int64 [kinds], and rows and remappable rows, int64 [kinds, 2].

    acts_alone: the policy does so; else single steps are not counted by layer."""

    def __init__(self, num_layers: int, device: torch.device, *, acts_alone: bool) -> None:
        super().__init__(num_layers, device)
        acting = [[int(acts_alone or name != Kind.SINGLE.value)] for name in KINDS]
        self.counts = torch.tensor(acting, device=device)  # [kinds, 1]: whether the policy does something
        self.steps = torch.zeros(len(STEPS), dtype=torch.int64, device=device)
        self.rows = torch.zeros(len(KINDS), 2, dtype=torch.int64, device=device)
        self.kinds = torch.arange(len(STEPS), device=device)
        self.acting = torch.tensor([STEPS.index(Kind(name)) for name in KINDS], device=device)

    def reset(self) -> None:
        super().reset()
        self.steps.zero_()
        self.rows.zero_()

    def begin_step(self, step: StepRows) -> None:
        rows, remap = self._count(step)
        kind = torch.where(
            remap == 0,
            STEPS.index(Kind.PREFILL),
            torch.where(
                remap < rows,
                STEPS.index(Kind.MIXED),
                torch.where(rows == 1, STEPS.index(Kind.SINGLE), STEPS.index(Kind.DECODE)),
            ),
        )
        one_hot = (self.kinds == kind).long()
        self.steps += one_hot
        self.kind.copy_(one_hot[self.acting][:, None] * self.counts)
        self.rows.addcmul_(self.kind, torch.stack((rows, self._asking(step, remap))))

    def _asking(self, step: StepRows, remap: Tensor) -> Tensor:
        """How many of the rows that may be remapped ask a price above 0."""
        if step.price is None or not step.acts:
            return remap
        asks_T = step.price > 0
        masks = [mask for mask in (step.valid, step.remap) if mask is not None]
        return torch.stack([asks_T, *masks]).all(0).sum()

    def _count(self, step: StepRows) -> tuple[Tensor, Tensor]:
        """How many rows are valid, and how many of these may be remapped."""
        every = self.kinds.new_full((), step.num_rows)
        rows = every if step.valid is None else step.valid.sum()
        if not step.acts:
            return rows, torch.zeros_like(every)
        if step.remap is None:
            return rows, rows
        return rows, (step.remap if step.valid is None else step.remap & step.valid).sum()
