"""Kept sets that are spread over the ranks of expert parallelism.

With per_rank=true a policy's kept set of N experts becomes the set of at least N experts whose fullest rank is as empty
as can be:

    candidates = what the policy keeps, what the voters' own routing loads, what is donated
    level      = the smallest L with  sum over ranks of min(L, candidates of the rank) >= N,
                 but at least what some rank has of pinned and donated experts: these stay anyway
    a rank keeps its first `level` candidates: donated and pinned ones, kept ones, others; equal: by u[e], lowest id

        u[e] = sum_t p[t,e]        p: the router's scores, t: the voters

So the fullest rank sheds what the batch wants least, and emptier ranks keep experts that cost no time there. The level
never lies above the fullest rank of the policy's own set. On one rank nothing changes.
"""

from dataclasses import dataclass

from torch import Tensor

from lynx_moe.policies.contract.forms import Rerouting
from lynx_moe.policies.contract.ranked import Placement, Ranked
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import scores


@dataclass(frozen=True, kw_only=True)
class Spread(Ranked, Rerouting):
    """per_rank: see the module."""

    def pinned(self, step: Step) -> Tensor:
        """bool [E]: kept experts that the policy's rule does not give up."""
        raise NotImplementedError(f"{self.name} must define pinned()")

    @property
    def needs_scores(self) -> bool:
        return self.per_rank or super().needs_scores

    def stays(self, step: Step) -> Tensor:
        keep_E = super().stays(step)
        return level(keep_E, self.pinned(step), step, self.placement) if self.spreads else keep_E


def level(keep_E: Tensor, pinned_E: Tensor, step: Step, placement: Placement) -> Tensor:
    """bool [E]: the kept set, spread over the ranks. Pinned and donated experts are part of keep_E."""
    score_TE = scores(step.logits_TE, step.spec)
    if step.allowed_TE is not None:
        score_TE = score_TE.where(step.allowed_TE, 0.0)
    candidate_E = keep_E | step.union(step.own.ids)
    return placement.spread(keep_E, pinned_E | step.free_E, candidate_E, step.total(score_TE))
