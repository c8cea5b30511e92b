"""Where in the model a layer stands, for policies that give up less at its ends.

What a layer's error does to the answer differs by depth. In the first layers little has been added to the residual
stream yet, so an error is a larger part of it; it shrinks as one over the number of layers before. After the last layer
nothing evens an error out.
"""

from dataclasses import dataclass, field, replace
from math import floor, log2
from typing import Self

from lynx_moe.policies.contract.policy import ModelShape, Policy

RAMP, LEAST_RAMP = 4, 2  # the first quarter of the layers, two at least
LAST = 0.25


def share(layer: int, num_layers: int) -> float:
    """What a layer of this number asks of a price, a power of two, by which prices are multiplied without rounding."""
    if layer == num_layers - 1:
        return LAST
    ramp = max(LEAST_RAMP, round(num_layers / RAMP))
    return 1.0 if layer + 1 >= ramp else 2.0 ** floor(log2((layer + 1) / ramp))


@dataclass(frozen=True, kw_only=True)
class Deep(Policy):
    """ends: the first quarter of the model's layers, two at least, and the last layer ask a part of the price: 1 / 4
    the last one, the first ones as much of it as they are far into the quarter, rounded down to a power of two.
    Layers by their number in the model, as engines attach them (`for_model`, `at_layer`)."""

    ends: bool = False
    num_layers: int = field(default=0, compare=False, repr=False)
    part: float = field(default=1.0, compare=False, repr=False)

    @property
    def layers_differ(self) -> bool:
        return self.ends or super().layers_differ

    def for_model(self, model: ModelShape) -> Self:
        return replace(super().for_model(model), num_layers=model.num_layers)

    def at_layer(self, layer: int) -> Self:
        return replace(self, part=share(layer, self.num_layers)) if self.ends else self
