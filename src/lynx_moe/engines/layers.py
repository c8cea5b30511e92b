"""A MoE layer as an engine knows it, and the check of a policy against all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from lynx_moe.policies import Policy
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A remapped MoE layer: the engine's name of it, and its router's rule."""

    name: str
    spec: RouterSpec


def check(policy: Policy, layers: Iterable[Layer], model: str) -> None:
    """Raises ValueError, naming the layer, if a knob of the policy does not fit one of them."""
    for layer in layers:
        try:
            policy.check(layer.spec)
        except ValueError as error:
            raise ValueError(f"{error} (layer {layer.name} of {model})") from None
