"""Cache-Prior ("Mixture of Cache-Conditional Experts", arXiv 2412.00099)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits
from lynx_moe.policies.contract.keeping import Reweighing
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.contract.weights import by_norm
from lynx_moe.routing import RouterSpec, Routing, order_key


@dataclass(frozen=True, kw_only=True)
class CachePrior(Reweighing):
    """A row chooses its top-k by s + weight * span * [in memory]; its own first top_j stay.

        s      what the model ranks by: logits, or scores with the selection bias
        span   mean of max s - min s over the rows that choose

    Weights follow the model's own rule on the new experts, without what those in memory were given. weight=0 is the
    model's own routing. The paper's span is a mean over all tokens so far; a policy remembers nothing, so here it is
    the step's. A step may have more distinct experts than the model's own routing, never more that must be loaded.

    Hurts at large weights: rows then follow what is in memory, and what is in memory follows the rows.
    """

    name: ClassVar[str] = "cache-prior"
    summary: ClassVar[str] = "top-k with experts in memory preferred by weight x the span of scores"
    source: ClassVar[str] = "Cache-Prior, arXiv 2412.00099"
    acts_alone: ClassVar[bool] = True
    needs_residency: ClassVar[bool] = True
    weight: float = 0.5
    top_j: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "top_j", self.top_j, least=0)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"cache-prior: weight={self.weight:g} must lie from 0 to 1")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "top_j", self.top_j, spec)

    def propose(self, step: Step) -> Routing:
        assert step.load_cost_E is not None
        own, choice_TE = step.own, step.choice_TE
        allowed_TE = torch.ones_like(choice_TE, dtype=torch.bool) if step.allowed_TE is None else step.allowed_TE
        first_TE = torch.zeros_like(allowed_TE).scatter(-1, step.best(self.top_j), True)
        moved_TE = choice_TE.where(step.load_cost_E >= 1, choice_TE + self.weight * self.span(step))
        ids_TK = order_key(moved_TE, allowed_TE.long() + first_TE).topk(step.spec.top_k, -1).indices
        same_T1 = (ids_TK.sort(-1).values == own.ids.sort(-1).values).all(-1, keepdim=True)
        weights_TK = by_norm(self.norm, step, ids_TK, mass_T1=step.own_mass())
        return Routing(torch.where(same_T1, own.ids, ids_TK), torch.where(same_T1, own.weights, weights_TK))

    def span(self, step: Step) -> Tensor:
        """float32 [1]: of rows whose scores are all finite; 0 where there is none."""
        span_T = step.choice_TE.double().amax(-1) - step.choice_TE.double().amin(-1)
        counts_T = step.voters_T & span_T.isfinite()
        total = span_T.where(counts_T, 0.0).sum(dim=0, keepdim=True)
        return (total / counts_T.sum(dim=0, keepdim=True).clamp(min=1)).float()
