"""What a policy takes from calibration: tensors about one layer's experts, measured on data. It never reads a file.

One layer's tensors, by name (E experts; `calibration/` makes them and holds the file):

    gate_norm   [E]     mean of gate weight x norm of the expert's output, over the tokens routed to it
    output_norm [E]     mean norm of its output over those tokens
    load        [E]     share of the tokens that are routed to it; sums to top_k
    similarity  [E, E]  of the outputs of two experts on the same tokens, 1 on the diagonal
    fold_scale  [E, E]  scalar s[a, b] that makes s * output_b the best stand-in for output_a
    fold_loss   [E, E]  what is then left of output_a, as a share of its square; inf where the pair was never seen
    sensitivity [E]     nats of KL per unit of squared weight share that its loss costs; only where it was asked for
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from lynx_moe.policies.contract.policy import Policy
from lynx_moe.routing import RouterSpec

VECTORS, TABLES = ("gate_norm", "output_norm", "load", "sensitivity"), ("similarity", "fold_scale", "fold_loss")
DIMENSIONS = dict.fromkeys(VECTORS, 1) | dict.fromkeys(TABLES, 2)


@dataclass(frozen=True, kw_only=True)
class Calibrated(Policy):
    """data: the calibration file. Engines read it and attach each layer's tensors by `for_layer`; in Python,
    `policy.for_layer(0, {0: {"similarity": ...}})` does it without a file.

    optional: a word for policies that do without calibration too, and better with it."""

    tensors: ClassVar[tuple[str, ...]]
    optional: ClassVar[bool] = False
    data: str | None = None
    calibration: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)

    @property
    def needs(self) -> tuple[str, ...]:
        """The names of the tensors that the policy reads."""
        return self.tensors

    @property
    def calibration_file(self) -> str | None:
        return self.data

    def for_layer(self, layer: int, artifact: Mapping[int, Mapping[str, Tensor]]) -> Self:
        if layer not in artifact:
            layers = ", ".join(map(str, sorted(artifact))) or "none"
            raise ValueError(f"{self.spec}: no calibration of layer {layer}; the data have layers {layers}")
        missing = [name for name in self.needs if name not in artifact[layer]]
        if missing:
            has = ", ".join(artifact[layer]) or "nothing"
            raise ValueError(f"{self.spec} needs {', '.join(missing)} of layer {layer}; the data have {has}")
        return replace(self, calibration=artifact[layer])

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if self.calibration is None and self.data is None and not self.optional:
            raise ValueError(
                f"{self.name} needs calibration data: write {self.spec},data=FILE (docs/reference/policies.md)"
            )
        for name in self.needs if self.calibration is not None else ():
            shape = tuple(self.tensor(name).shape)
            if shape != (spec.num_experts,) * DIMENSIONS[name]:
                raise ValueError(
                    f"{self.spec}: {name} has shape {shape}, but this router has {spec.num_experts} experts; "
                    "calibrate the model that is served"
                )

    def tensor(self, name: str) -> Tensor:
        """An attached tensor. Raises ValueError if none are attached."""
        if self.calibration is None:
            raise ValueError(f"{self.spec}: {name} is not attached; route by policy.for_layer(layer, artifact)")
        return self.calibration[name]
