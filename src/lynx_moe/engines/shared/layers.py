"""A MoE layer as an engine knows it, and a policy made to fit all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lynx_moe.calibration.artifact import attach, layer_number
from lynx_moe.policies import ONE_RANK, ModelShape, Placement, Policy
from lynx_moe.policies.contract.trial import tried
from lynx_moe.routing import RouterSpec


class Bypass(Exception):
    """This router keeps the engine's own routing; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A remapped MoE layer: the engine's name of it, its router's rule, which rank has which expert (None: a load
    balancer moves them about), and bool [E], the experts of this rank (None: all)."""

    name: str
    spec: RouterSpec
    placement: Placement | None = ONE_RANK
    here_E: torch.Tensor | None = None


def fitted(
    policy: Policy, layers: Sequence[Layer], model: str, device: torch.device, *, residency: bool = False
) -> list[Policy]:
    """Each layer's policy, its calibration and placement attached. residency: whether steps tell which experts are in
    memory.

    Raises ValueError, naming the layer, if a knob does not fit a layer's router, or calibration is missing; and for a
    policy that needs to know more than steps tell.
    """
    policy.check_residency(told=residency)
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


def tried_on(
    by_layer: Sequence[Policy], layers: Sequence[Layer], device: torch.device, *, residency: bool = False
) -> None:
    """So that the first step that fails, or on a CPU waits for a compiler, is none of a user's."""
    if device.type == "cpu":
        firsts = {(layer.spec.num_experts, layer.spec.top_k): number for number, layer in enumerate(layers)}
        for number in firsts.values():
            tried(by_layer[number], layers[number].spec, residency=residency)


def built_shape(configured: ModelShape, layers: Sequence[Layer]) -> ModelShape:
    """The same with the numbers of the layers that there are: the largest, where they differ."""
    if not layers:
        return configured
    return replace(
        configured,
        num_experts=max(spec.num_experts for spec in _specs(layers)),
        top_k=max(spec.top_k for spec in _specs(layers)),
    )


def without_kernel(layers: Sequence[Layer], by_layer: Sequence[Policy], device: torch.device) -> list[str]:
    """Where decisions take the plain-torch definition although a GPU has kernels, each reason once."""
    if device.type != "cuda":
        return []
    reasons = (policy.without_kernel(layer.spec) for policy, layer in zip(by_layer, layers, strict=True))
    return sorted({reason for reason in reasons if reason})


def _specs(layers: Sequence[Layer]) -> Iterator[RouterSpec]:
    return (layer.spec for layer in layers)
