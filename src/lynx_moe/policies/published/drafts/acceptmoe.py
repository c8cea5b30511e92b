"""AcceptMoE: experts for verifying a draft, weighed by the chance that its tokens are accepted (arXiv 2608.02989)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.policies.contract.forms import Verifying
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import order_key, scores


@dataclass(frozen=True, kw_only=True)
class AcceptMoe(Verifying):
    """Of every request that verifies a draft stay the experts A of its root, the row whose token is certain, and of the
    others the N with the largest u.

        u[e] = sum over the draft's rows of a[t] p[t,e] [e in top-k(t)]        p: the router's scores
        a[t] = sqrt(p_d / N_d)       p_d: the measured chance that depth d is committed, N_d: the draft's nodes there
        N    = ceil(exp(H(q)))       q: u of the experts outside A, made to sum to 1; H: its entropy in nats

    vLLM drafts chains, so N_d is 1. exp(H) is rounded to float32 before it is rounded up: of m equal shares it is m.
    Scores carry no selection bias.
    Acts where rows that verify may be remapped, and leaves rows that decode alone.
    Hurts where requests have little in common: each keeps a set of its own, and the batch loads all of them.
    """

    name: ClassVar[str] = "acceptmoe"
    summary: ClassVar[str] = "per draft, its root's experts and as many others as their likely use spreads over"
    source: ClassVar[str] = "AcceptMoE, arXiv 2608.02989"

    def keep(self, step: Step) -> Tensor:
        own_TE = torch.zeros_like(step.logits_TE, dtype=torch.bool).scatter(-1, step.own.ids, True)
        depth_T = torch.zeros_like(step.voters_T, dtype=torch.int64) if step.depth_T is None else step.depth_T
        anchor_TE = step.by_request(own_TE & (depth_T == 0)[:, None]) > 0
        use_TE = scores(step.logits_TE, step.spec).double().where(own_TE, 0.0)
        if step.chance_T is not None:
            use_TE = use_TE * step.chance_T.double().sqrt()[:, None]
        use_TE = step.by_request(use_TE).where(~anchor_TE, 0.0)
        share_TE = use_TE / use_TE.sum(-1, keepdim=True).clamp(min=1e-300)
        entropy_T1 = -torch.xlogy(share_TE, share_TE).sum(-1, keepdim=True)
        number_T1 = entropy_T1.exp().float().ceil()
        place_TE = order_key(use_TE).argsort(-1, descending=True).argsort(-1)
        return anchor_TE | ((place_TE < number_T1) & (use_TE > 0))
