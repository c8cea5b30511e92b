"""Published rules that look at which experts a device's cache holds: they are replayed step after step, and served by
nothing here.

T rows, E experts, K = top_k. Every row decides alone, by what the cache holds as the step begins; what the step uses is
then there (`cache.Cache`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.lab.replay.cache import Cache
from lynx_moe.lab.replay.recording import Recording
from lynx_moe.policies import Policy
from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits, check_share
from lynx_moe.policies.contract.fillers import EMPTY, fill_slots
from lynx_moe.routing import RouterSpec, Routing, loaded, order_key, preference, weigh


class Span:
    """The running mean of a row's largest selection score less its least."""

    def __init__(self) -> None:
        self.total, self.rows = 0.0, 0

    def add(self, choice_TE: Tensor) -> float:
        """The mean with these rows, of which those that are not finite do not count."""
        span_T = choice_TE.double().amax(-1) - choice_TE.double().amin(-1)
        span_T = span_T[span_T.isfinite()]
        self.total, self.rows = self.total + float(span_T.sum()), self.rows + len(span_T)
        return self.total / max(self.rows, 1)


@dataclass(frozen=True, kw_only=True)
class OfCache(Policy):
    """Base of the rules here. span: what a rule remembers of the steps before."""

    def given(self, logits_TE: Tensor, spec: RouterSpec, own: Routing, held_E: Tensor, span: Span) -> Routing:
        """The routing of a step whose cache holds held_E; slots that are left over are EMPTY, and weigh 0."""
        raise NotImplementedError(f"{self.name} must define given()")


@dataclass(frozen=True, kw_only=True)
class CachePrior(OfCache):
    """A row chooses its top-k by s + weight * span * [resident]; its own first top_j stay.

        s      what the model ranks by: logits, or scores with the selection bias
        span   running mean of max s - min s over the rows of the layer so far, these included

    Weights follow the model's own rule on the new experts, without what residents were given. weight=0 is the model's
    own routing.
    """

    name: ClassVar[str] = "cache-prior"
    summary: ClassVar[str] = "top-k with resident experts preferred by weight x the span of scores"
    source: ClassVar[str] = "Cache-Prior, arXiv 2412.00099"
    weight: float = 0.5
    top_j: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.name, "top_j", self.top_j, least=0)
        if not 0 <= self.weight <= 1:
            raise ValueError(f"cache-prior: weight={self.weight:g} must lie from 0 to 1")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "top_j", self.top_j, spec)

    def given(self, logits_TE: Tensor, spec: RouterSpec, own: Routing, held_E: Tensor, span: Span) -> Routing:
        choice_TE, allowed_TE = preference(logits_TE, spec)
        first_TJ = order_key(choice_TE, allowed_TE).topk(self.top_j, -1).indices
        tier_TE = torch.zeros_like(choice_TE, dtype=torch.int64) if allowed_TE is None else 2 * allowed_TE.long()
        tier_TE = tier_TE.scatter(-1, first_TJ, 3)
        moved_TE = choice_TE.where(~held_E, choice_TE + self.weight * span.add(choice_TE))
        ids_TK = order_key(moved_TE, tier_TE).topk(spec.top_k, -1).indices
        same_T1 = (ids_TK.sort(-1).values == own.ids.sort(-1).values).all(-1, keepdim=True)
        weights_TK = weigh(logits_TE, ids_TK, spec, own.weights.sum(-1, keepdim=True))
        return Routing(torch.where(same_T1, own.ids, ids_TK), torch.where(same_T1, own.weights, weights_TK))


@dataclass(frozen=True, kw_only=True)
class DropOnMiss(OfCache):
    """A row whose least weight is above half its largest stays; of others the lightest slots that are not resident go,
    one after another, while the share of weight that went is at most `mass` and more than min_k stay. What is left is
    scaled to the row's own total."""

    name: ClassVar[str] = "drop-on-miss"
    summary: ClassVar[str] = "a row's lightest experts go if they are not resident, up to a share of its weight"
    source: ClassVar[str] = "MoE-Infinity, issue 234"
    own_only: ClassVar[bool] = True
    EVEN: ClassVar[float] = 0.5
    mass: float = 0.1
    min_k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "mass", self.mass)
        check_rank(self.name, "min_k", self.min_k)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "min_k", self.min_k, spec)

    def given(self, logits_TE: Tensor, spec: RouterSpec, own: Routing, held_E: Tensor, span: Span) -> Routing:
        weights_TK = own.weights.double()
        total_T1 = weights_TK.sum(-1, keepdim=True).clamp(min=1e-20)
        uneven_T1 = weights_TK.amin(-1, keepdim=True) <= self.EVEN * weights_TK.amax(-1, keepdim=True)
        order_TK = weights_TK.argsort(dim=-1, stable=True)
        missed_TK = ~held_E[own.ids.gather(-1, order_TK)] & uneven_T1
        gone_TK = (weights_TK.gather(-1, order_TK) * missed_TK).cumsum(-1) / total_T1
        goes_TK = missed_TK & (gone_TK <= self.mass + 1e-9) & (missed_TK.cumsum(-1) <= spec.top_k - self.min_k)
        live_TK = torch.ones_like(goes_TK).scatter(-1, order_TK, ~goes_TK)
        left_TK = weights_TK.where(live_TK, 0.0)
        scaled_TK = (left_TK * total_T1 / left_TK.sum(-1, keepdim=True).clamp(min=1e-20)).float()
        same_T1 = live_TK.all(-1, keepdim=True)
        return Routing(own.ids.where(live_TK, EMPTY), torch.where(same_T1, own.weights, scaled_TK))


RULES: dict[str, type[OfCache]] = {rule.name: rule for rule in (CachePrior, DropOnMiss)}


def decided(recording: Recording, rule: OfCache, slots: int) -> list[Routing]:
    """The routing [N, K] of every layer, step after step through a cache of `slots` experts. Rows that may not be
    changed keep theirs. Raises ValueError if a knob does not fit the router."""
    return [_of_layer(recording, number, rule, slots) for number in range(len(recording.layers))]


def _of_layer(recording: Recording, number: int, rule: OfCache, slots: int) -> Routing:
    layer = recording.layers[number]
    rule.check(layer.spec)
    cache, span, start = Cache(1, layer.spec.num_experts, slots), Span(), 0
    ids_NK, weights_NK = layer.own.ids.clone(), layer.own.weights.float().clone()
    for size in recording.rows.tolist():
        rows = slice(start, start := start + size)
        own, remap_T1 = Routing(ids_NK[rows].clone(), weights_NK[rows].clone()), recording.remap[rows][:, None]
        new = rule.given(layer.logits[rows].float(), layer.spec, own, cache.held()[0], span)
        ids_TK = fill_slots(torch.where(remap_T1, new.ids, own.ids), own.ids, layer.spec.num_experts, None)
        ids_NK[rows], weights_NK[rows] = ids_TK, torch.where(remap_T1, new.weights, own.weights)
        cache.use(loaded(ids_TK, layer.spec.num_experts)[None])
    return Routing(ids_NK, weights_NK)
