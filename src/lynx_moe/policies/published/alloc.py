"""Alloc-MoE: a budget of slots for the whole batch (arXiv 2604.08133)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits
from lynx_moe.policies.contract.forms import Dropping
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, scores


@dataclass(frozen=True, kw_only=True)
class Alloc(Dropping):
    """Every voter keeps its first k_base experts; what is left of T * k slots, T being the number of voters and k the
    mean of experts a row, goes to the voters' other slots with the largest scores p, whoever has them.

    k may be a fraction (the number of slots is rounded down). Equal p: lowest expert id; rows that want the same expert
    by the same p get it together, so that a row's place in the batch decides nothing.

    The paper has a k for every layer, found by dynamic programming on measured losses; here all layers have the same.
    p are the router's scores of all experts without selection bias, also where weights are renormalised.
    Hurts where rows differ in how sure they are: unsure ones are left with k_base. Saves computation rather than
    loading: an expert that one row drops, another one keeps.
    """

    name: ClassVar[str] = "alloc"
    summary: ClassVar[str] = "every row's first k_base experts, then the batch's best slots until k a row"
    source: ClassVar[str] = "Alloc-MoE, arXiv 2604.08133"
    token_level: ClassVar[bool] = False
    own_only: ClassVar[bool] = False  # rows are compared by scores, which shares of their own weights do not tell
    k: float
    k_base: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "k_base", self.k_base)
        if not self.k_base <= self.k < float("inf"):
            raise ValueError(f"alloc: k={self.k:g} must be a number of experts, at least k_base={self.k_base}")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "k_base", self.k_base, spec)
        if self.k > spec.top_k:
            raise ValueError(f"alloc: k={self.k:g} is more than the model's top_k={spec.top_k}; use k <= {spec.top_k}")

    def milder(self, spec: RouterSpec) -> Self | None:
        return None if self.k + 1 >= spec.top_k else replace(self, k=self.k + 1)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        first_TK = rank_TK < self.k_base
        open_TK = step.voters_T[:, None] & ~first_TK
        p_TK = scores(step.logits_TE, step.spec).gather(-1, step.own.ids).where(open_TK, -1.0)
        voters = step.voters_T.sum()
        spare = ((voters * self.k + 1e-9).floor() - voters * self.k_base).long()  # 7 * 0.3 lies just below its product
        ids_N, p_N = step.own.ids.flatten(), p_TK.flatten()
        by_id_N = ids_N.argsort(stable=True)
        order_N = by_id_N[p_N[by_id_N].argsort(stable=True, descending=True)]
        last = order_N.gather(0, (spare - 1).clamp(min=0)[None])  # the last slot that is within the budget
        last_p, last_id = p_N.gather(0, last), ids_N.gather(0, last)
        within_TK = (p_TK > last_p) | ((p_TK == last_p) & (step.own.ids <= last_id))
        return first_TK | (open_TK & within_TK & (spare > 0))
