"""What a guard goes by where CUDA graphs have recorded the policy: its figure is computed inside the graph.

A graph does the same in every step. So the layers that are looked at are chosen before anything is recorded, and their
figure is computed in every step and left in memory that lies still. Which steps count is decided outside. The rung
above is one more decision, at prices of its own: buffers tell it what it would ask.
"""

from typing import Self

import torch
from torch import Tensor

from lynx_moe.control.loss import mass_lost
from lynx_moe.control.options import GuardOptions
from lynx_moe.policies import Policy
from lynx_moe.routing import RouterSpec, Routing, Rows


class Figures:
    """lost: float32 [layers that are looked at, 2], the mass lost at this rung and at the one above in the last step.

    share: of the layers that are looked at, evenly spread, one at the least."""

    def __init__(self, num_layers: int, share: float, max_rows: int, device: torch.device) -> None:
        self.share, stride = share, min(num_layers, round(1 / share))
        self.layers = range(stride // 2, num_layers, stride)
        self.lost = torch.zeros(len(self.layers), 2, device=device)
        self.server = torch.zeros(max_rows, dtype=torch.bool, device=device)  # rows that follow the server's policy
        self.above = torch.zeros(max_rows, device=device)  # and what they would ask one rung up

    @classmethod
    def of(cls, guard: GuardOptions | None, num_layers: int, max_rows: int, device: torch.device) -> Self | None:
        """What a guard needs; None: nothing."""
        if guard is None or guard.max_mass_lost is None or not num_layers:
            return None
        return cls(num_layers, guard.layers, max_rows, device)

    def ask(self, remap_T: Tensor, above: float) -> None:
        """Before a step: the rows that count, [max_rows], and the price of the rung above."""
        self.server.copy_(remap_T)
        torch.mul(self.server, above, out=self.above)

    def see(
        self,
        layer: int,
        logits_TE: Tensor,
        spec: RouterSpec,
        own: Routing,
        final: Routing,
        valid_T: Tensor,
        policy: Policy,
    ) -> None:
        """Inside the step: one of `layers`, by the recorded policy."""
        num_rows = len(logits_TE)
        rows = Rows(valid=valid_T, remap=self.server[:num_rows])
        asking = Rows(valid=valid_T, remap=rows.remap, price=self.above[:num_rows])
        above = policy.decide(logits_TE, spec, asking, own)
        pair = torch.stack([mass_lost(own, each, rows) for each in (final, above)])
        self.lost[self.layers.index(layer)].copy_(pair)


def check_graphs(options: GuardOptions, figures: Figures | None) -> None:
    """Raises ValueError for what a guard cannot do under CUDA graphs."""
    if options.max_error is not None:
        raise ValueError(
            "guard: max_error runs a layer's experts once more now and then, and CUDA graphs do the same in every "
            "step; bound max_mass_lost instead, or use enforce_eager=True"
        )
    if options.max_mass_lost is not None and (figures is None or figures.share != options.layers):
        why = "no guard's figure" if figures is None else f"figures of layers={figures.share:g}"
        raise ValueError(
            f"guard: CUDA graphs have recorded {why}; give a guard when the engine starts, later change its bounds but "
            "not its layers, or use enforce_eager=True"
        )
