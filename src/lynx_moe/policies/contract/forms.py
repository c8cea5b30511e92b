"""The forms in which a policy loads fewer experts. A policy says what it says; its form makes the routing.

    Rerouting   keep(step):    which experts stay; every row chooses its top-k among them
    Verifying   keep(step):    the same for each request by itself, whose rows verify a draft
    Dropping    live(step):    which slots of the model's own routing stay; a row gets fewer than k experts
    Merging     targets(step): which expert takes over each slot; slots of a row that meet on an expert are merged

Shapes: T rows, E experts, K = top_k.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.calibrated import Calibrated
from lynx_moe.policies.contract.fillers import EMPTY
from lynx_moe.policies.contract.keeping import Keeping, Reweighing
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.contract.weights import BY_RULE, OF_SLOTS, by_norm
from lynx_moe.routing import Routing, reroute


@dataclass(frozen=True, kw_only=True)
class Rerouting(Keeping):
    """Rows choose their top-k anew, among the experts that stay."""

    def propose(self, step: Step) -> Routing:
        def rule(ids_TK: Tensor) -> Tensor:
            return by_norm(self.norm, step, ids_TK, mass_T1=step.own_mass())

        ranked = (step.choice_TE, step.allowed_TE)
        return reroute(step.logits_TE, self.stays(step), step.spec, step.own, ranked, rule)

    def stays(self, step: Step) -> Tensor:
        """bool [E]: the experts among which rows choose, the donated ones with them."""
        return self.keep(step) | step.free_E


@dataclass(frozen=True, kw_only=True)
class Verifying(Reweighing):
    """The rows that verify a request's draft choose anew, among what stays for this request. Rows that decode verify
    nothing, and keep their routing."""

    def keep(self, step: Step) -> Tensor:
        """bool [T, E]: the experts that stay, the same for all rows of a request. Donated ones are added."""
        raise NotImplementedError(f"{self.name} must define keep()")

    def propose(self, step: Step) -> Routing:
        def rule(ids_TK: Tensor) -> Tensor:
            return by_norm(self.norm, step, ids_TK, mass_T1=step.own_mass())

        ones_T1 = torch.ones_like(step.logits_TE[:, :1])
        verifies_T1 = step.by_request(ones_T1) > 1
        ranked = (step.choice_TE, step.allowed_TE)
        keep_TE = self.keep(step) | step.free_E | ~verifies_T1
        return reroute(step.logits_TE, keep_TE, step.spec, step.own, ranked, rule)


@dataclass(frozen=True, kw_only=True)
class Dropping(Reweighing):
    """Each row does without some of its own experts, never without its first. Other rows do not matter.

    norm=model is what the model would do with fewer experts: a router that does not renormalise gives raw scores.
    """

    token_level: ClassVar[bool] = True
    acts_alone: ClassVar[bool] = True
    drops_slots: ClassVar[bool] = True
    own_only: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = OF_SLOTS

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        """bool [T, K]: the slots that stay; rank_TK is a slot's rank in its row, 0 the first, which must stay."""
        raise NotImplementedError(f"{self.name} must define live()")

    def propose(self, step: Step) -> Routing:
        live_TK = self.live(step, step.ranks())
        weights_TK = by_norm(self.norm, step, step.own.ids, live_TK)
        return unless_same(step, torch.where(live_TK, step.own.ids, EMPTY), weights_TK)


@dataclass(frozen=True, kw_only=True)
class Merging(Calibrated, Reweighing):
    """Each slot of a row's own routing goes to a target expert, and its weight with it (norm=own), or its weight times
    the scalar fitted for the pair (norm=fold). Slots that meet on an expert are merged: the first takes the sum."""

    drops_slots: ClassVar[bool] = True
    own_only: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("own", "fold", *BY_RULE)
    norm: str = "own"

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.tensors, "fold_scale") if self.norm == "fold" else self.tensors

    def targets(self, step: Step) -> Tensor:
        """int64 [T, K]: the expert that takes over each slot, itself where it stays."""
        raise NotImplementedError(f"{self.name} must define targets()")

    def nearest(self, step: Step, cost_EE: Tensor, open_E: Tensor) -> tuple[Tensor, Tensor]:
        """([T, K], [T, K]): the least cost[e, v] of each slot's expert e over open experts v, and that v (equal: lowest
        id). Where the model restricts a row to groups, v lies in them; the cost is inf where none is open."""
        if step.allowed_TE is None:  # per expert, not per slot: a step can have thousands of rows
            cost_E, target_E = cost_EE.where(open_E, torch.inf).min(-1)
            return cost_E[step.own.ids], target_E[step.own.ids]
        open_T1E = (open_E & step.allowed_TE)[:, None]
        cost_TK, target_TK = cost_EE[step.own.ids].where(open_T1E, torch.inf).min(-1)
        return cost_TK, target_TK

    def propose(self, step: Step) -> Routing:
        own, target_TK = step.own, self.targets(step)
        meet_TKK = target_TK[:, :, None] == target_TK[:, None, :]
        live_TK = meet_TKK.to(torch.int8).argmax(-1) == torch.arange(target_TK.shape[-1], device=target_TK.device)
        ids_TK = torch.where(live_TK, target_TK, EMPTY)
        if self.norm not in ("own", "fold"):
            return unless_same(step, ids_TK, by_norm(self.norm, step, target_TK, live_TK, step.own_mass()))
        carried_TK = own.weights
        if self.norm == "fold":
            scale_TK = self.tensor("fold_scale")[own.ids, target_TK]
            carried_TK = carried_TK * scale_TK.where(target_TK != own.ids, 1.0)
        return unless_same(step, ids_TK, (meet_TKK * carried_TK[:, None, :]).sum(-1).where(live_TK, 0.0))


def unless_same(step: Step, ids_TK: Tensor, weights_TK: Tensor) -> Routing:
    """Rows whose experts all stay keep the model's own weights."""
    same_T1 = (ids_TK == step.own.ids).all(-1, keepdim=True)
    return Routing(ids_TK, torch.where(same_T1, step.own.weights, weights_TK))
