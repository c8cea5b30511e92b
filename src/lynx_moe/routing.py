"""What a routing decision is, and the two ways to make one: the model's own top-k, and a reroute into a kept set.

Shapes: T rows (tokens of one step), E experts, K = top_k, G expert groups. All tensors of a step live on one device.
Everything here has fixed shapes, no host sync and no data-dependent control flow: torch.compile traces it, CUDA graphs
capture it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus", "sparsemixer")
INT32_MIN = -(2**31)


@dataclass(frozen=True, kw_only=True, eq=False)
class RouterSpec:
    """How a model's router turns logits into experts and weights.

    scoring      logits -> scores: "softmax" over all experts, or "sigmoid" / "sqrtsoftplus" of each logit alone.
                 "sparsemixer" (Phi-3.5-MoE): softmax, but a chosen expert's weight is its share among those that were
                 not chosen before it, rank no higher than it, and whose logit lies within 2 * jitter of its own.
    renormalize  the chosen scores are divided by their sum (softmax over the chosen logits, as gpt-oss does, is this).
    scale        routed scaling factor: multiplies the weights last.
    bias         [E] selection bias (`e_score_correction_bias`): added to the scores for choosing, never for weights.
    groups       (n_group, topk_group): only the best topk_group of n_group equal groups may be chosen from. A group's
                 score is its best expert's, or the sum of its two best biased scores where there is a bias.
    jitter       relative distance of "sparsemixer".
    expert_scale [E] one more factor for the weight of each expert, last (Gemma 4).

    Raises ValueError when the values contradict one another.
    """

    num_experts: int
    top_k: int
    scoring: str = "softmax"
    renormalize: bool = True
    scale: float = 1.0
    bias: Tensor | None = None
    groups: tuple[int, int] | None = None
    jitter: float = 0.0
    expert_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k={self.top_k} must lie between 1 and num_experts={self.num_experts}")
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring={self.scoring!r} is unknown; allowed: {', '.join(SCORINGS)}")
        for name, vector in (("bias", self.bias), ("expert_scale", self.expert_scale)):
            if vector is not None and vector.shape != (self.num_experts,):
                raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({self.num_experts},)")
        if self.groups is not None:
            n_group, topk_group = self.groups
            if n_group < 1 or self.num_experts % n_group or not 1 <= topk_group <= n_group:
                raise ValueError(
                    f"groups={self.groups}: n_group must divide num_experts={self.num_experts}, "
                    "and topk_group must lie between 1 and n_group"
                )
            if self.bias is not None and self.num_experts // n_group < 2:
                raise ValueError(f"groups={self.groups}: biased groups are scored by two experts, a group has one")
            if topk_group * (self.num_experts // n_group) < self.top_k:
                raise ValueError(f"groups={self.groups} leave fewer experts than top_k={self.top_k}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Which rows of a step may change, and how dear that is: bool masks and prices of length T.

    valid  False for padding: it neither votes nor counts nor loads experts. None: every row is valid.
    remap  True where the policy may reroute (decode rows that are not exact). Valid rows that are not remap keep the
           model's routing and donate the experts that they load. None: every valid row.
    price  float32, finite: how much harm a load must prevent for this row. 0: the row is as if it were not remap. What
           other prices mean is the policy's (`Policy.knows_prices`). None: every row asks what the policy does.

    Where a step verifies drafts, it also says of every row:

    request  int64, from 0 to T - 1: rows of the same request have the same number. None: each row is of its own.
    depth    int64: the row's place in its request's draft. 0: its token is certain. None: all are.
    chance   float32, above 0 and at most 1: that its token is committed, which is 1 at depth 0. None: 1 for all.

    Of the layer's experts, from an engine that keeps a part of them in memory (`engines/disk/slots.py`):

    load_cost_E  float32 [E], above 0 and at most 1: what loading an expert costs, in loads from where all of them are.
                 1: it must be loaded from there; less: it is in memory already. None: 1 for all.
    """

    valid: Tensor | None = None
    remap: Tensor | None = None
    price: Tensor | None = None
    request: Tensor | None = None
    depth: Tensor | None = None
    chance: Tensor | None = None
    load_cost_E: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Routing:
    """What the expert kernel gets: ids [T, K] (int64) and weights [T, K] (float32).

    counts: distinct experts of the valid rows before and after, and how many of them changed, where a kernel has
    counted them anyway; from a kernel on a device int64 [4] there, the last number 1 if no row changed and else 0.
    """

    ids: Tensor
    weights: Tensor
    counts: tuple[int, int, int] | Tensor | None = None


def order_key(value_TE: Tensor, tier_TE: Tensor | None = None) -> Tensor:
    """int64 [T, E] keys, all different within a row, whose descending order is: tier, then value, then lowest id.

    torch.topk promises nothing about ties; on these keys there are none. Values are compared as float32; +0 equals -0.
    """
    bits = value_TE.float().contiguous().view(torch.int32)
    rank = torch.where(bits < 0, INT32_MIN - bits, bits)
    lowest_first = torch.arange(value_TE.shape[-1] - 1, -1, -1, device=value_TE.device)
    key = lowest_first.add(rank, alpha=1 << 16)
    return key if tier_TE is None else key.add(tier_TE, alpha=1 << 50)


def places(value_E: Tensor, tier_E: Tensor | None = None) -> Tensor:
    """int64 [E]: each expert's place by `order_key`, 0 the first."""
    key_E = order_key(value_E[None], None if tier_E is None else tier_E[None])[0]
    return key_E.argsort(descending=True).argsort()


def scores(logits_TE: Tensor, spec: RouterSpec) -> Tensor:
    """Float32 scores [T, E]: what the weights are made of.

    Rounded from float64. In float32 the last bit tells where a row or an expert stands (vector or remainder of a
    sigmoid on a CPU, the order of a softmax's sum), and would break ties.
    """
    logits_TE = logits_TE.float().double()
    if spec.scoring in ("softmax", "sparsemixer"):
        return logits_TE.softmax(-1).float()
    if spec.scoring == "sigmoid":
        return logits_TE.sigmoid().float()
    return torch.nn.functional.softplus(logits_TE).sqrt().float()


def preference(logits_TE: Tensor, spec: RouterSpec) -> tuple[Tensor, Tensor | None]:
    """What the model ranks by, float32 [T, E], and the experts that its groups allow, bool [T, E] (None: all).

    The biased score where there is a bias, else the logit: every scoring is monotone in it.
    """
    choice_TE = logits_TE.float() if spec.bias is None else scores(logits_TE, spec) + spec.bias.float()
    if spec.groups is None:
        return choice_TE, None
    n_group, topk_group = spec.groups
    grouped = choice_TE.reshape(*choice_TE.shape[:-1], n_group, -1)
    score_TG = grouped.amax(-1) if spec.bias is None else grouped.topk(2, -1).values.sum(-1)
    best = order_key(score_TG).topk(topk_group, -1).indices
    allowed_TG = torch.zeros_like(score_TG, dtype=torch.bool).scatter(-1, best, True)
    return choice_TE, allowed_TG.repeat_interleave(choice_TE.shape[-1] // n_group, -1)


def weigh(
    logits_TE: Tensor,
    ids_TK: Tensor,
    spec: RouterSpec,
    mass_T1: Tensor | None = None,
    live_TK: Tensor | None = None,
) -> Tensor:
    """The model's weights rule on given ids: float32 [T, K].

    mass_T1: what a row's weights shall sum to where the router does not renormalise a softmax (the row's original
    top-k mass, Lynx's rule). Scores of independent experts (sigmoid) follow the model's rule as they are.
    live_TK: False for dropped slots. They weigh 0, and the rule holds for the others. None: every slot is live.
    """
    if spec.scoring == "softmax" and (spec.renormalize or mass_T1 is not None):
        chosen = logits_TE.float().gather(-1, ids_TK)
        chosen = (chosen if live_TK is None else chosen.where(live_TK, -torch.inf)).softmax(-1)
        if mass_T1 is not None and not spec.renormalize:
            return chosen * mass_T1
    else:
        sparse = spec.scoring == "sparsemixer"
        chosen = _sparsemixer(logits_TE, ids_TK, spec) if sparse else scores(logits_TE, spec).gather(-1, ids_TK)
        if live_TK is not None:
            chosen = chosen.where(live_TK, 0.0)
        if spec.renormalize:
            chosen = chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-20)
    return chosen * (spec.scale if spec.expert_scale is None else spec.scale * spec.expert_scale.float()[ids_TK])


def _sparsemixer(logits_TE: Tensor, ids_TK: Tensor, spec: RouterSpec) -> Tensor:
    """On the model's own ids, whose experts rank highest of what is left, exactly its rule; on others, what the rule
    would give if the experts that the row could not have did not exist."""
    logits_TE = logits_TE.float()
    shares = []
    for place in range(spec.top_k):
        id_T1 = ids_TK[:, place : place + 1]
        value_T1 = logits_TE.gather(-1, id_T1)
        distance_TE = (value_T1 - logits_TE) / logits_TE.abs().clamp(min=value_T1)
        apart_TE = (logits_TE > value_T1) | (distance_TE > 2 * spec.jitter)
        apart_TE = apart_TE.scatter(-1, ids_TK[:, :place], True)
        shares.append(logits_TE.masked_fill(apart_TE, -torch.inf).softmax(-1).gather(-1, id_T1))
    return torch.cat(shares, -1).nan_to_num(0.0)  # an expert at -inf is alone with its like


def select(logits_TE: Tensor, spec: RouterSpec) -> Routing:
    """The model's own routing: top-k of its preference (equal values: lowest expert id), its weights rule."""
    choice_TE, allowed_TE = preference(logits_TE, spec)
    ids_TK = order_key(choice_TE, allowed_TE).topk(spec.top_k, -1).indices
    return Routing(ids_TK, weigh(logits_TE, ids_TK, spec))


def reroute(
    logits_TE: Tensor,
    keep: Tensor,
    spec: RouterSpec,
    own: Routing,
    ranked: tuple[Tensor, Tensor | None] | None = None,
    rule: Callable[[Tensor], Tensor] | None = None,
) -> Routing:
    """Each row's top-k inside the kept experts, bool [E] or [T, E], in the row's own order.

    A row whose own experts all stay is returned bit for bit. Where fewer than K kept experts lie in the groups that a
    row may use and above -inf (a logit that says never), its own next choices fill up. `ranked` saves the work of
    `preference` if the caller has done it. `rule` gives the weights of ids [T, K]; None: the model's.
    """
    choice_TE, allowed_TE = ranked or preference(logits_TE, spec)
    keep_TE = keep & (choice_TE > -torch.inf)
    tier_TE = keep_TE if allowed_TE is None else allowed_TE * (1 + keep_TE.long())
    ids_TK = order_key(choice_TE, tier_TE).topk(spec.top_k, -1).indices
    # Two ways to stay: all are kept (an engine may break ties otherwise), or what is filled up with is what was there.
    again_TK = (own.ids[:, :, None] == ids_TK[:, None, :]).any(-1)
    kept_TK = keep[own.ids] if keep.dim() == 1 else keep.gather(-1, own.ids)
    stays_T1 = kept_TK.all(-1, keepdim=True) | again_TK.all(-1, keepdim=True)
    weights_TK = rule(ids_TK) if rule is not None else weigh(logits_TE, ids_TK, spec, own.weights.sum(-1, keepdim=True))
    return Routing(torch.where(stays_T1, own.ids, ids_TK), torch.where(stays_T1, own.weights, weights_TK))


def loaded(ids_TK: Tensor, num_experts: int, rows_T: Tensor | None = None) -> Tensor:
    """bool [E]: the experts that the given rows (None: all) load; an id of -1 loads nothing."""
    if rows_T is not None:
        ids_TK = torch.where(rows_T[:, None], ids_TK, num_experts)
    flags = torch.zeros(num_experts + 1, dtype=torch.bool, device=ids_TK.device)
    return flags.scatter(0, ids_TK.flatten().long() % (num_experts + 1), True)[:num_experts]


def distinct(ids_TK: Tensor, num_experts: int, valid_T: Tensor | None = None) -> Tensor:
    """0-d int64: how many different experts the valid rows load; what decode time is linear in."""
    return loaded(ids_TK, num_experts, valid_T).sum()
