"""Experts that live on several ranks: a layer takes as long as the fullest rank, not as the sum over ranks.

Under expert parallelism every rank loads its own experts, and all wait for the one that loads most. With per_rank=true
a policy's kept set of N experts becomes the set of at least N experts whose fullest rank is as empty as can be:

    candidates = what the policy keeps, what the voters' own routing loads, what is donated
    level      = the smallest L with  sum over ranks of min(L, candidates of the rank) >= N,
                 but at least what some rank has of pinned and donated experts: these stay anyway
    a rank keeps its first `level` candidates: donated and pinned ones, kept ones, others; equal: by u[e], lowest id

        u[e] = sum_t p[t,e]        p: the router's scores, t: the voters

So the fullest rank sheds what the batch wants least, and emptier ranks keep experts that cost no time there. The level
never lies above the fullest rank of the policy's own set. On one rank nothing changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.policies.forms import Rerouting
from lynx_moe.policies.step import Step
from lynx_moe.routing import RouterSpec, loaded, places, scores


@dataclass(frozen=True, eq=False)
class Placement:
    """Which rank has which expert: rank_E int64 [E], from 0 to num_ranks - 1; None: all are on one rank."""

    num_ranks: int = 1
    rank_E: Tensor | None = None

    @classmethod
    def of(cls, ranks: Sequence[int], device: torch.device | str = "cpu") -> "Placement":
        """From the rank of every expert."""
        return cls(max(ranks) + 1, torch.tensor(ranks, device=device))

    @classmethod
    def linear(cls, num_experts: int, num_ranks: int) -> "Placement":
        """Ranks one after another, of equal size, the first ones of one more where it does not come out even."""
        if not 1 <= num_ranks <= num_experts:
            raise ValueError(f"{num_experts} experts cannot live on {num_ranks} ranks; use 1 to {num_experts}")
        size, more = divmod(num_experts, num_ranks)
        return cls.of([rank for rank in range(num_ranks) for _ in range(size + (rank < more))])

    def count(self, flags_E: Tensor) -> Tensor:
        """int64 [R]: how many of the flagged experts each rank has."""
        if self.rank_E is None:
            return flags_E.sum(-1, keepdim=True)
        here_RE = self.rank_E == torch.arange(self.num_ranks, device=flags_E.device)[:, None]
        return (here_RE & flags_E).sum(-1)


ONE_RANK = Placement()


@dataclass(frozen=True, kw_only=True)
class Spread(Rerouting):
    """per_rank: see the module. The engine attaches where the experts are (`for_placement`).

    A step keeps the model's routing also if its fullest rank would load more than under the latter.
    """

    knows_ranks: ClassVar[bool] = True
    per_rank: bool = False
    placement: Placement = field(default=ONE_RANK, compare=False, repr=False)

    @property
    def spreads(self) -> bool:
        """Whether ranks make a difference here."""
        return self.per_rank and self.placement.rank_E is not None

    def for_placement(self, placement: Placement | None) -> Self:
        if placement is None and self.per_rank:
            raise ValueError(
                f"{self.spec}: per_rank=true needs experts that stay on their ranks, and here a load balancer moves "
                "them (EPLB); switch it off, or leave per_rank out"
            )
        return self if placement is None else replace(self, placement=placement)

    def without_kernel(self, spec: RouterSpec) -> str | None:
        return f"{self.spec}: the kernels do not spread over ranks" if self.spreads else super().without_kernel(spec)

    def pinned(self, step: Step) -> Tensor:
        """bool [E]: kept experts that the policy's rule does not give up."""
        raise NotImplementedError(f"{self.name} must define pinned()")

    def stays(self, step: Step) -> Tensor:
        keep_E = super().stays(step)
        return level(keep_E, self.pinned(step), step, self.placement) if self.spreads else keep_E

    def allows(self, new_TK: Tensor, own_TK: Tensor, num_experts: int, valid_T: Tensor | None) -> Tensor:
        fits = super().allows(new_TK, own_TK, num_experts, valid_T)
        if not self.spreads:
            return fits
        new, own = (self.placement.count(loaded(ids, num_experts, valid_T)).amax() for ids in (new_TK, own_TK))
        return fits & (new <= own)


def level(keep_E: Tensor, pinned_E: Tensor, step: Step, placement: Placement) -> Tensor:
    """bool [E]: the kept set, spread over the ranks. Pinned and donated experts are part of keep_E."""
    assert placement.rank_E is not None
    score_TE = scores(step.logits_TE, step.spec)
    if step.allowed_TE is not None:
        score_TE = score_TE.where(step.allowed_TE, 0.0)
    candidate_E = keep_E | step.union(step.own.ids)
    always_E = pinned_E | step.free_E
    levels_L = torch.arange(len(keep_E) + 1, device=keep_E.device)
    held_L = torch.minimum(levels_L[:, None], placement.count(candidate_E)).sum(-1)
    height = torch.maximum((held_L < keep_E.sum()).sum(), placement.count(always_E).amax())
    tier_E = candidate_E.long() + keep_E + always_E
    tier_E = tier_E + (placement.num_ranks - 1 - placement.rank_E) * 4  # one rank after another
    sizes_R = placement.count(torch.ones_like(keep_E))
    start_R = sizes_R.cumsum(0) - sizes_R
    return candidate_E & (places(step.total(score_TE), tier_E) - start_R[placement.rank_E] < height)
