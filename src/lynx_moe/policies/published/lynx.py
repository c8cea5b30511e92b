"""AffinityBinning: the policy of Lynx (arXiv 2411.08982, v3).

Each voter sorts the experts into bins by their log-ratio to its favourite; what the other voters say only breaks ties
inside a bin. The union of everybody's top-k under that order stays.

    d[t,e] = L[t,e] - max_e L[t,e]
    q[t,e] = max(ceil(alpha * d), -beta)                     bins 0, -1, ..., -beta
    S[e]   = sum_t B ** q[t,e]                               B = number of voters
    C[t]   = top-k of  q[t,e] + (S[e] - B ** q[t,e]) / B     equal values: lowest expert id
    keep   = union of C[t]
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.kernels import EDGE, cpu, gpu
from lynx_moe.policies.contract.policy import ModelShape
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.published.spread import Spread
from lynx_moe.policies.published.values import alpha_beta
from lynx_moe.routing import RouterSpec, Routing, Rows, select

EXACT_BITS = 53  # float64 adds integers below 2**53 without rounding


@dataclass(frozen=True, kw_only=True)
class Lynx(Spread):
    """alpha: bins per unit of log-ratio; beta: depth of the last bin, which everything further down shares. Experts
    whose probability is below e**(-beta/alpha) of the favourite's are interchangeable: smaller beta/alpha saves more.

    Left open, they are the authors' values for a model that has some (`published.py`); elsewhere beta = 3 where k <= 4,
    else 2, and alpha = beta / depth (a thousandth more: `kernels.EDGE`), where depth is the router's own scale: the
    median distance, over the step's voters, from the favourite down to rank k // 2 (so that half of a token's experts
    stay out of the last bin). A row can lose its favourite when more than k experts share bin 0, which is depth / beta
    wide: small k needs finer bins.

    The binned quantity is what the model ranks by: the logit, or the logarithm of the biased score where the router has
    a selection bias. Experts outside a row's groups are in none of its bins.
    pin_top1 also keeps every voter's favourite: a row with more than k experts in bin 0 can lose it otherwise.
    per_rank: experts of the union may go from the fullest rank, but for pinned favourites.
    """

    name: ClassVar[str] = "lynx"
    summary: ClassVar[str] = "AffinityBinning: bins of log-ratio to the favourite, ties by the batch's bins"
    source: ClassVar[str] = "Lynx v3, arXiv 2411.08982"
    alpha: float | None = None
    beta: int | None = None
    pin_top1: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 1e-30 < self.alpha < 1e30:  # beyond, products of float32 are not finite
            raise ValueError(f"lynx: alpha={self.alpha:g} must be a finite number above 0, such as alpha=3")
        if self.beta is not None and not 0 <= self.beta <= 16:
            raise ValueError(f"lynx: beta={self.beta} must be a whole number from 0 to 16, such as beta=2")

    def for_model(self, model: ModelShape) -> Self:
        known = alpha_beta(model)
        if known is None or self.alpha is not None or self.beta is not None:
            return self
        return replace(self, alpha=known[0], beta=known[1])

    def milder(self, spec: RouterSpec) -> Self | None:
        """Bins half as wide, that reach twice as deep."""
        beta = 4 * max(1, self.beta if self.beta is not None else _default_beta(spec))
        return None if beta > 16 else replace(self, alpha=None if self.alpha is None else 2 * self.alpha, beta=beta)

    def decide(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        if self.norm != "model" or self.spreads or gpu.fits(logits_TE) or not cpu.fits(logits_TE, spec):
            return super().decide(logits_TE, spec, rows, own)
        own = own or select(logits_TE, spec)
        own = Routing(own.ids.long(), own.weights.float())
        fast = cpu.affinity_binning(
            logits_TE, spec, rows, own, alpha=self.alpha, pin_top1=self.pin_top1, **self._settings(spec)
        )
        return fast or self.route(logits_TE, spec, rows, own)

    def vote(self, spec: RouterSpec) -> gpu.Vote:
        return gpu.Vote(rule="bins", alpha=self.alpha, pinned=int(self.pin_top1), **self._settings(spec))

    def _settings(self, spec: RouterSpec) -> dict[str, Any]:
        beta = self.beta if self.beta is not None else _default_beta(spec)
        return {"beta": beta, "rank": _default_rank(spec), "max_base": _max_base(beta)}

    def keep(self, step: Step) -> Tensor:
        value_TE = step.choice_TE
        if step.spec.bias is not None:  # rounded from float64, as scores are
            value_TE = value_TE.clamp(min=1e-30).double().log().float()
        if step.allowed_TE is not None:
            value_TE = value_TE.masked_fill(~step.allowed_TE, -torch.inf)
        beta = self.beta if self.beta is not None else _default_beta(step.spec)
        alpha = self.alpha if self.alpha is not None else _open_alpha(beta, value_TE, step)
        distance_TE = value_TE - value_TE.amax(-1, keepdim=True)
        bin_TE = (alpha * distance_TE).ceil().clamp(min=-beta).long()
        # (S - h) / B < 1 and h is constant inside a row's bin: the order is bin, then S, then lowest id.
        place_E = _place(_popularity(bin_TE, beta, step))
        rank_TE = bin_TE * step.spec.num_experts - place_E
        if step.allowed_TE is not None:
            rank_TE = rank_TE.where(step.allowed_TE, torch.iinfo(torch.int64).min)
        keep_E = step.union(rank_TE.topk(step.spec.top_k, -1).indices)
        return keep_E | self.pinned(step)

    def pinned(self, step: Step) -> Tensor:
        return step.union(step.best(1)) if self.pin_top1 else torch.zeros_like(step.free_E)


def _popularity(bin_TE: Tensor, beta: int, step: Step) -> Tensor:
    """S * B**beta, float64 [E]: an integer sum, hence exact, whatever the order of the rows.

    The powers of B stay below 2**53: above 1552 voters at beta = 4 (the deepest published) B is capped, never below.
    """
    base = step.voters_T.sum().clamp(max=_max_base(beta)).double()
    power_Q = torch.cat([base.new_ones(1), base.expand(beta).cumprod(0)])
    counted_TE = step.voters_T[:, None] if step.allowed_TE is None else step.voters_T[:, None] & step.allowed_TE
    return power_Q[bin_TE + beta].where(counted_TE, 0.0).sum(0)


def _place(value_E: Tensor) -> Tensor:
    """int64 [E]: each expert's place in descending order, 0 the first; equal values: lowest id first."""
    order_E = value_E.sort(descending=True, stable=True).indices
    return torch.empty_like(order_E).scatter(0, order_E, torch.arange(len(order_E), device=order_E.device))


def _max_base(beta: int) -> int:
    return int(2 ** (EXACT_BITS / (beta + 1)))


def _default_rank(spec: RouterSpec) -> int:
    return min(max(1, spec.top_k // 2), spec.num_experts - 1)


def _default_beta(spec: RouterSpec) -> int:
    return 3 if spec.top_k <= 4 else 2


def _open_alpha(beta: int, value_TE: Tensor, step: Step) -> Tensor:
    """[1]: EDGE * beta / the voters' median distance from rank 0 down to rank k // 2, in the binned quantity's unit."""
    top_TR = value_TE.topk(_default_rank(step.spec) + 1, -1).values
    gap_T = (top_TR[:, 0] - top_TR[:, -1]).where(step.voters_T, torch.inf).sort().values
    middle = ((step.voters_T.sum(dim=0, keepdim=True) - 1) // 2).clamp(min=0)
    depth = gap_T.gather(0, middle).clamp(1e-6, 1e6)  # gather: indexing with a 0-d tensor would sync with the host
    return torch.full_like(depth, beta * EDGE) / depth  # a number / depth would round twice: torch takes the reciprocal
