"""Experiments as policies: rows are denied some experts, and their next best take over.

Each row is changed by itself, whatever the others do, and the guard is off: nothing is saved here, it is asked what a
reassignment costs. T rows, E experts, K = top_k.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies import Policy
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.controls.random import hashed
from lynx_moe.routing import RouterSpec, Routing, order_key, weigh


@dataclass(frozen=True, kw_only=True)
class Experiment(Policy):
    token_level: ClassVar[bool] = True
    acts_alone: ClassVar[bool] = True
    guarded: ClassVar[bool] = False
    source: ClassVar[str] = "-"


@dataclass(frozen=True, kw_only=True)
class Denial(Experiment):
    """Rows whose own experts are not denied keep their routing bit for bit; the others are weighed by the model's rule.

    Where fewer than K experts of the groups that a row may use are left, denied ones fill up.
    """

    def denied(self, step: Step) -> Tensor:
        """bool [T, E]: what a row may not have."""
        raise NotImplementedError(f"{self.name} must define denied()")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if spec.num_experts == spec.top_k:
            raise ValueError(f"every token uses all {spec.top_k} experts: none can be denied, for no other takes over")

    def propose(self, step: Step) -> Routing:
        denied_TE = self.denied(step)
        open_TE = ~denied_TE & (step.choice_TE > -torch.inf)
        tier_TE = open_TE if step.allowed_TE is None else step.allowed_TE * (1 + open_TE.long())
        ids_TK = order_key(step.choice_TE, tier_TE).topk(step.spec.top_k, -1).indices
        changed_T1 = denied_TE.gather(-1, step.own.ids).any(-1, keepdim=True)
        weights_TK = weigh(step.logits_TE, ids_TK, step.spec, step.own_mass())
        return Routing(
            torch.where(changed_T1, ids_TK, step.own.ids), torch.where(changed_T1, weights_TK, step.own.weights)
        )


@dataclass(frozen=True, kw_only=True)
class DenyRank(Denial):
    """Every row does without the expert of one rank of its own choice, 0 the first."""

    name: ClassVar[str] = "deny-rank"
    summary: ClassVar[str] = "one rank of every row is denied"
    rank: int

    def denied(self, step: Step) -> Tensor:
        at_rank_TK = step.ranks() == self.rank
        return torch.zeros_like(step.logits_TE, dtype=torch.bool).scatter(-1, step.own.ids, at_rank_TK)


@dataclass(frozen=True, kw_only=True)
class DenyExpert(Denial):
    """No row may have one expert."""

    name: ClassVar[str] = "deny-expert"
    summary: ClassVar[str] = "one expert is denied to all rows"
    expert: int

    def denied(self, step: Step) -> Tensor:
        num_experts = step.spec.num_experts
        return (torch.arange(num_experts, device=step.logits_TE.device) == self.expert).expand_as(step.logits_TE)


@dataclass(frozen=True, kw_only=True)
class DenyHalf(Denial):
    """Every row is denied half of all experts (fewer, if fewer than K would be left), drawn by a hash of its own
    choice: the same for a token wherever it is met, and over many tokens no expert is spared."""

    name: ClassVar[str] = "deny-half"
    summary: ClassVar[str] = "a random half of the experts is denied to each row"

    def denied(self, step: Step) -> Tensor:
        num_experts = step.spec.num_experts
        num_denied = min(num_experts // 2, num_experts - step.spec.top_k)
        row_T1 = hashed(step.own.ids + 1).sum(-1, keepdim=True)
        expert_E = torch.arange(1, num_experts + 1, device=row_T1.device)
        first_TD = hashed(hashed(expert_E) + row_T1).topk(num_denied, -1).indices
        return torch.zeros_like(step.logits_TE, dtype=torch.bool).scatter(-1, first_TD, True)


@dataclass(frozen=True, kw_only=True)
class Forced(Experiment):
    """The step loads exactly `num_distinct` experts (at most T * K), each about equally often; for timing only."""

    name: ClassVar[str] = "forced"
    summary: ClassVar[str] = "a given number of distinct experts, in turn"
    num_distinct: int

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if not spec.top_k <= self.num_distinct <= spec.num_experts:
            allowed = f"{spec.top_k} to {spec.num_experts}"
            raise ValueError(f"forced: num_distinct={self.num_distinct}: a step of this router loads {allowed} experts")

    def propose(self, step: Step) -> Routing:
        slots = torch.arange(step.own.ids.numel(), device=step.own.ids.device)
        return Routing((slots % self.num_distinct).view_as(step.own.ids), step.own.weights)
