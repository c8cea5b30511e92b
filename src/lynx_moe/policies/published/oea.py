"""Opportunistic expert activation (OEA, arXiv 2511.02237)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lynx_moe.kernels.gpu import Vote
from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.published.spread import Spread
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True)
class Oea(Spread):
    """Every voter's first k0 experts stay; each fills up to k from what then stays, in its own order.

    per_rank: the first k0 stay wherever they are; other ranks fill up to the fullest one, which costs no time.
    """

    name: ClassVar[str] = "oea"
    summary: ClassVar[str] = "union of everybody's first k0 experts, the rest filled from it"
    source: ClassVar[str] = "OEA, arXiv 2511.02237"
    own_only: ClassVar[bool] = True
    k0: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "k0", self.k0)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "k0", self.k0, spec)

    def milder(self, spec: RouterSpec) -> Self | None:
        return None if self.k0 + 1 >= spec.top_k else replace(self, k0=self.k0 + 1)

    def vote(self, spec: RouterSpec) -> Vote:
        return Vote(rule="first", pinned=self.k0)

    def keep(self, step: Step) -> Tensor:
        return step.union(step.best(self.k0))

    def pinned(self, step: Step) -> Tensor:
        return self.keep(step)
