"""MoE-Spec: a budget of experts for verifying each request's draft (arXiv 2602.16052)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.amounts import check_kept
from lynx_moe.policies.contract.forms import Verifying
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, order_key, scores


@dataclass(frozen=True, kw_only=True)
class MoeSpec(Verifying):
    """Of every request that verifies a draft the `budget` experts with the largest s stay.

        s[e] = sum over the draft's rows of p[t,e]        p: the router's scores of all experts

    The draft's rows are the request's next token and its drafted ones. Of the paper's two ways this is substitution:
    rows choose their top-k among what stays; truncation (rows do without the others) it finds worse at small budgets.
    Scores carry no selection bias, and experts outside a row's groups get none of its score.
    Acts where rows that verify may be remapped, and leaves rows that decode alone.
    Hurts where drafts are rarely accepted: their rows count as much as the one that is sure to be kept.
    """

    name: ClassVar[str] = "moe-spec"
    summary: ClassVar[str] = "per draft, the largest sums of scores"
    source: ClassVar[str] = "MoE-Spec, arXiv 2602.16052"
    budget: int

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_kept(self.name, "budget", self.budget, spec)

    def keep(self, step: Step) -> Tensor:
        score_TE = scores(step.logits_TE, step.spec)
        if step.allowed_TE is not None:
            score_TE = score_TE.where(step.allowed_TE, 0.0)
        best = order_key(step.by_request(score_TE)).topk(self.budget, -1).indices
        return torch.zeros_like(score_TE, dtype=torch.bool).scatter(-1, best, True)
