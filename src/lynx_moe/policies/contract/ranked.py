"""Experts that live on several ranks: where they are, and what a policy that looks at ranks has in common.

Under expert parallelism every rank loads its own experts, and all wait for the one that loads most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.policies.contract.policy import Policy
from lynx_moe.routing import RouterSpec, loaded, places


@dataclass(frozen=True, eq=False)
class Placement:
    """Which ranks have which expert. held() says it, bool [R, E], a row per rank; an expert with copies is on several
    of them. It is asked in every decision, since a load balancer moves copies between steps. None: all are on one."""

    num_ranks: int = 1
    held: Callable[[], Tensor] | None = None

    @classmethod
    def of(cls, ranks: Sequence[int], device: torch.device | str = "cpu") -> "Placement":
        """From the rank of every expert."""
        num_ranks = max(ranks) + 1
        return cls.fixed(torch.tensor(ranks, device=device) == torch.arange(num_ranks, device=device)[:, None])

    @classmethod
    def fixed(cls, here_RE: Tensor) -> "Placement":
        """One that does not change."""
        return cls(len(here_RE), lambda: here_RE)

    @classmethod
    def linear(cls, num_experts: int, num_ranks: int, device: torch.device | str = "cpu") -> "Placement":
        """Ranks one after another, of equal size, the first ones of one more where it does not come out even."""
        if not 1 <= num_ranks <= num_experts:
            raise ValueError(f"{num_experts} experts cannot live on {num_ranks} ranks; use 1 to {num_experts}")
        size, more = divmod(num_experts, num_ranks)
        return cls.of([rank for rank in range(num_ranks) for _ in range(size + (rank < more))], device)

    @property
    def here_RE(self) -> Tensor:
        assert self.held is not None
        return self.held()

    def count(self, flags_E: Tensor) -> Tensor:
        """int64 [R]: how many of the flagged experts each rank has."""
        return flags_E.sum(-1, keepdim=True) if self.held is None else (self.here_RE & flags_E).sum(-1)

    def places(self, value_E: Tensor, tier_E: Tensor) -> Tensor:
        """int64 [E]: each expert's place among those of its rank, 0 the first: by tier (the highest first), then by
        value, then by id. Of an expert on several ranks it is the last of its places there."""
        here_RE, place_E = self.here_RE, places(value_E, tier_E)
        place_RE = here_RE[:, place_E.argsort()].cumsum(-1)[:, place_E] - 1
        return place_RE.where(here_RE, -1).amax(0)

    def worth(self, value_E: Tensor, stays_E: Tensor, always_E: Tensor, price: Tensor) -> Tensor:
        """bool [E]: the experts on levels that are worth more than the price of an expert on every rank. A level is the
        m-th expert of each rank, always_E first, then stays_E by value; one that holds something of always_E stays,
        and so does one below a level that stays."""
        place_E = self.places(value_E, stays_E.long() + 2 * always_E)
        charge_E = value_E.double().where(stays_E, 0.0).where(~always_E, torch.inf)
        charge_L = torch.zeros_like(charge_E).scatter_add(0, place_E, charge_E).float()
        level_L = torch.arange(1, len(charge_L) + 1, device=charge_L.device)
        return place_E < level_L.where(charge_L > price * self.num_ranks, 0).amax()

    def spread(self, keep_E: Tensor, always_E: Tensor, candidate_E: Tensor, value_E: Tensor) -> Tensor:
        """bool [E]: at least as many experts as keep_E, the fullest rank as empty as can be, always_E among them.
        keep_E holds always_E, and candidate_E both. A rank keeps always_E first, then keep_E; within each by value.
        An expert on several ranks stays if all of these keep it."""
        place_E = self.places(value_E, candidate_E.long() + keep_E + always_E)
        levels_L = torch.arange(len(keep_E) + 1, device=keep_E.device)
        held_L = (candidate_E & (place_E < levels_L[:, None])).sum(-1)
        height = torch.maximum((held_L < keep_E.sum()).sum(), self.count(always_E).amax())
        return candidate_E & (place_E < height)


ONE_RANK = Placement()


@dataclass(frozen=True, kw_only=True)
class Ranked(Policy):
    """per_rank: the fullest rank is what counts. The engine attaches where the experts are (`for_placement`).

    A step keeps the model's routing also if its fullest rank would load more than under the latter.
    """

    knows_ranks: ClassVar[bool] = True
    per_rank: bool = False
    placement: Placement = field(default=ONE_RANK, compare=False, repr=False)

    @property
    def spreads(self) -> bool:
        """Whether ranks make a difference here."""
        return self.per_rank and self.placement.num_ranks > 1

    def for_placement(self, placement: Placement | None) -> Self:
        if placement is None and self.per_rank:
            raise ValueError(
                f"{self.spec}: per_rank=true needs to know which rank has which expert, which is not known here; leave "
                "per_rank out"
            )
        return self if placement is None else replace(self, placement=placement)

    def without_kernel(self, spec: RouterSpec) -> str | None:
        return f"{self.spec}: the kernels do not spread over ranks" if self.spreads else super().without_kernel(spec)

    def allows(
        self, new_TK: Tensor, own_TK: Tensor, num_experts: int, valid_T: Tensor | None, cost_E: Tensor | None = None
    ) -> Tensor:
        fits = super().allows(new_TK, own_TK, num_experts, valid_T, cost_E)
        if not self.spreads:
            return fits
        new, own = (self.placement.count(loaded(ids, num_experts, valid_T)).amax() for ids in (new_TK, own_TK))
        return fits & (new <= own)
