"""SERE: similarity-based expert re-routing (arXiv 2602.07616)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits
from lynx_moe.policies.contract.forms import Merging
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec


@dataclass(frozen=True, kw_only=True)
class Sere(Merging):
    """Choices outside the primary experts go to the primary expert whose outputs are most like theirs.

        P         = union of every voter's first num_primary experts, and the donated ones
        target[e] = e                          if e is in P
                    v = argmax_{v in P} Sim[e,v]   if Sim[e,v] >= rho     equal: lowest id
                    e                          otherwise: nothing in P can stand in for it

    The weight of a choice goes with it unchanged (norm=own). rho=0 moves every choice.

    As in the authors' release: only ranks num_primary and up can lie outside P; choices of a row that meet on an expert
    add up; the expert that a choice moves to need not be among the row's own. Where the model restricts a row to
    groups, its targets are the primary ones among these (not in the paper).
    Hurts when Sim is of other data than is served, and with it rho means something else in every model.
    """

    name: ClassVar[str] = "sere"
    summary: ClassVar[str] = "union of first num_primary; others go to the most similar of it"
    source: ClassVar[str] = "SERE, arXiv 2602.07616"
    tensors: ClassVar[tuple[str, ...]] = ("similarity",)
    num_primary: int
    rho: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "num_primary", self.num_primary)
        if not 0 <= self.rho <= 1:
            raise ValueError(f"sere: rho={self.rho:g} must lie between 0 and 1")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "num_primary", self.num_primary, spec)

    def targets(self, step: Step) -> Tensor:
        primary_E = step.union(step.best(self.num_primary)) | step.free_E
        cost_TK, target_TK = self.nearest(step, -self.tensor("similarity"), primary_E)
        return torch.where(primary_E[step.own.ids] | (cost_TK > -self.rho), step.own.ids, target_TK)
