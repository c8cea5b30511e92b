"""A MoE layer as an engine knows it, and a policy made to fit all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lynx_moe.calibration.artifact import attach
from lynx_moe.policies import Policy
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A remapped MoE layer: the engine's name of it, and its router's rule."""

    name: str
    spec: RouterSpec


def fitted(policy: Policy, layers: Sequence[Layer], model: str, device: torch.device) -> list[Policy]:
    """Each layer's policy, its calibration attached.

    Raises ValueError, naming the layer, if a knob does not fit a layer's router, or calibration is missing.
    """
    by_layer = attach(policy, [layer.name for layer in layers], device)
    for layer, one in zip(layers, by_layer, strict=True):
        try:
            one.check(layer.spec)
        except ValueError as error:
            raise ValueError(f"{error} (layer {layer.name} of {model})") from None
    return by_layer
