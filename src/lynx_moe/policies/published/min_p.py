"""Smart expert reduction of ik_llama.cpp (`-ser k_min,threshold`): min-p, over experts."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits, check_share
from lynx_moe.policies.contract.forms import Dropping
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, scores


@dataclass(frozen=True, kw_only=True)
class MinP(Dropping):
    """A row keeps its first k_min experts, and of the others those with p[i] > threshold * p[0].

    p is what the model ranks by: the score, with the selection bias where there is one (ik_llama.cpp compares biased
    scores too). threshold=1 is `topk:k=k_min`. Like all skipping per token it saves computation rather than loading.
    """

    name: ClassVar[str] = "min-p"
    summary: ClassVar[str] = "a row's first k_min experts, others above threshold x its first"
    source: ClassVar[str] = "ik_llama.cpp, pull request 239"
    k_min: int
    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "k_min", self.k_min)
        check_share(self.name, "threshold", self.threshold)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "k_min", self.k_min, spec)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        p_TE = scores(step.logits_TE, step.spec) if step.spec.bias is None else step.choice_TE
        p_TK = p_TE.gather(-1, step.own.ids)
        return (rank_TK < self.k_min) | (p_TK > self.threshold * step.first(p_TK))
