"""ExFold: folding experts into a pool by fitted scalars (arXiv 2608.24938)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.amounts import check_kept
from lynx_moe.policies.contract.forms import Merging
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, places


@dataclass(frozen=True, kw_only=True)
class ExFold(Merging):
    """The pool holds the num_keep experts that add most to the batch; choices outside go to where least is lost.

        pool      = the num_keep experts with the largest sum_t w[t,e] * norm[e], and the donated ones
        target[a] = argmin_{b in pool} Loss[a,b]         equal: lowest id
        weight    = w[t,a] * s[a,target]                 norm=fold

    w are the row's own weights, norm the experts' mean output norm, s and Loss are fitted (`calibration/`).

    The decode rule of the paper with its dynamic pool (the paper's fastest figures freeze it). As in the authors'
    release, a choice that was never seen beside any expert of the pool is dropped (its s is 0). Where the model
    restricts a row to groups, its targets are the pool's experts among these; without any, a choice stays (not in the
    paper).
    Hurts when the data of calibration are not like what is served: s is a mean over tokens.
    """

    name: ClassVar[str] = "exfold"
    summary: ClassVar[str] = "num_keep by weight x norm; others fold into it by fitted scalars"
    source: ClassVar[str] = "ExFold, arXiv 2608.24938"
    tensors: ClassVar[tuple[str, ...]] = ("output_norm", "fold_loss")
    num_keep: int
    norm: str = "fold"

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_kept(self.name, "num_keep", self.num_keep, spec, least=1)

    def targets(self, step: Step) -> Tensor:
        weight_TE = torch.zeros_like(step.logits_TE).scatter(-1, step.own.ids, step.own.weights)
        place_E = places(step.total(weight_TE) * self.tensor("output_norm"))
        pool_E = (place_E < self.num_keep) | step.free_E
        never_seen = torch.finfo(torch.float32).max  # worse than any that was seen, but still one of the pool
        cost_TK, target_TK = self.nearest(step, self.tensor("fold_loss").clamp(max=never_seen), pool_E)
        return torch.where(pool_E[step.own.ids] | cost_TK.isinf(), step.own.ids, target_TK)
