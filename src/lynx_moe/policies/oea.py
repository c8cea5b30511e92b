"""Opportunistic expert activation (OEA, arXiv 2511.02237)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.policies.policy import Policy, Step
from lynx_moe.routing import RouterSpec, order_key


@dataclass(frozen=True, kw_only=True)
class Oea(Policy):
    """Every voter's first k0 experts stay; each fills up to k from what then stays, in its own order."""

    name: ClassVar[str] = "oea"
    summary: ClassVar[str] = "union of everybody's first k0 experts, the rest filled from it"
    source: ClassVar[str] = "OEA, arXiv 2511.02237"
    k0: int

    def __post_init__(self) -> None:
        if self.k0 < 1:
            raise ValueError(f"oea: k0={self.k0} must be at least 1")

    def check(self, spec: RouterSpec) -> None:
        if self.k0 > spec.top_k:
            raise ValueError(f"oea: k0={self.k0} is more than the model's top_k={spec.top_k}; use k0 <= {spec.top_k}")

    def keep(self, step: Step) -> Tensor:
        return step.union(order_key(step.choice_TE, step.allowed_TE).topk(self.k0, -1).indices)
