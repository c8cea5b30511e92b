"""The top-k cut: run the model with fewer experts per token, as users of llama.cpp do by `expert_used_count`."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits
from lynx_moe.policies.contract.forms import Dropping
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True)
class TopK(Dropping):
    """Every row keeps its first k experts: the model with top_k = k.

    With norm=k2=N it is the k1/k2 split (arXiv 2609.04575): run k experts, but weigh them as if N had run, so that what
    is left out is missing instead of being made up by the others. Known as strong at k = top_k / 2, and to collapse
    below 3 of 8; the union of a batch shrinks far less than its rows.
    """

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "every row's first k experts"
    source: ClassVar[str] = "llama.cpp; norm=k2: arXiv 2609.04575"
    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "k", self.k)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "k", self.k, spec)

    def milder(self, spec: RouterSpec) -> Self | None:
        return None if self.k + 1 >= spec.top_k else replace(self, k=self.k + 1)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        return rank_TK < self.k
