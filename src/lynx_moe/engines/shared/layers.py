"""A MoE layer as an engine knows it, and a policy made to fit all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lynx_moe.calibration.artifact import attach, layer_number
from lynx_moe.policies import ONE_RANK, Placement, Policy
from lynx_moe.policies.contract.trial import tried
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A remapped MoE layer: the engine's name of it, its router's rule, which rank has which expert (None: a load
    balancer moves them about), and bool [E], the experts of this rank (None: all)."""

    name: str
    spec: RouterSpec
    placement: Placement | None = ONE_RANK
    here_E: torch.Tensor | None = None


def fitted(policy: Policy, layers: Sequence[Layer], model: str, device: torch.device) -> list[Policy]:
    """Each layer's policy, its calibration and placement attached.

    Raises ValueError, naming the layer, if a knob does not fit a layer's router, or calibration is missing.
    """
    by_layer = attach(policy, [layer.name for layer in layers], device)
    for number, layer in enumerate(layers):
        try:
            by_layer[number] = _at(by_layer[number], layer.name).for_placement(layer.placement)
            by_layer[number].check(layer.spec)
        except ValueError as error:
            raise ValueError(f"{error} (layer {layer.name} of {model})") from None
    return by_layer


def _at(policy: Policy, name: str) -> Policy:
    return policy.at_layer(layer_number(name)) if policy.layers_differ else policy


def tried_on(by_layer: Sequence[Policy], layers: Sequence[Layer], device: torch.device) -> None:
    """So that the first step that fails, or on a CPU waits for a compiler, is none of a user's."""
    if device.type == "cpu":
        firsts = {(layer.spec.num_experts, layer.spec.top_k): number for number, layer in enumerate(layers)}
        for number in firsts.values():
            tried(by_layer[number], layers[number].spec)
