"""Whole decisions of `lynx` in numpy, for CPUs, where a router ranks by its logits and scores by softmax; counts.

Inside a real step, whose weights have swept the caches, a decision of 75 small torch operations costs 570 µs (batch 8,
`lynx-moe demo`, counting included) and the one here 320 µs: fewer calls, and shapes that may depend on the data.
(`priced` is compiled: `fused.py`.) Ids equal the definition's exactly, weights within float32 rounding; nothing
returned shares memory with what was given.

Shapes: T rows, V voters, E experts, K = top_k, N kept experts.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.kernels import EDGE
from lynx_moe.routing import RouterSpec, Routing, Rows

Array = np.ndarray[Any, Any]


def fits(logits_TE: Tensor, spec: RouterSpec) -> bool:
    """Whether this file computes the router's rule, here."""
    plain = spec.scoring == "softmax" and spec.bias is None and spec.groups is None and spec.expert_scale is None
    return plain and logits_TE.device.type == "cpu"


def affinity_binning(
    logits_TE: Tensor,
    spec: RouterSpec,
    rows: Rows | None,
    own: Routing,
    *,
    alpha: float | None,
    beta: int,
    rank: int,
    max_base: int,
    pin_top1: bool,
) -> Routing | None:
    """`Lynx.route`. alpha None: beta (times EDGE) over the voters' median distance from the favourite down to `rank`.

    None: a voter finds fewer than K kept experts above -inf, a rare case that is left to the definition.
    """
    logits, own_ids, own_weights = logits_TE.float().numpy(), own.ids.numpy(), own.weights.numpy()
    top_T = logits.max(1)
    valid, voters = _rows(top_T, rows)
    num_voters = int(voters.sum())
    voting = slice(None) if num_voters == len(voters) else voters  # a slice copies nothing
    keep = np.zeros(spec.num_experts, dtype=np.bool_)
    if num_voters < len(voters):
        keep[own_ids[~voters if valid is None else valid & ~voters]] = True
    if num_voters == 0 or (num_voters == 1 and not keep.any()):
        return _padded(own_ids.copy(), own_weights.copy(), valid)
    logits_VE, top_V1 = logits[voting], top_T[voting, None]
    if alpha is None:
        gap_V = np.sort(top_V1[:, 0] - np.partition(logits_VE, -1 - rank, 1)[:, -1 - rank])
        alpha = np.float32(beta * EDGE) / gap_V[(num_voters - 1) // 2].clip(1e-6, 1e6)
    bin_VE = np.maximum(np.ceil(np.float32(alpha) * (logits_VE - top_V1)), -beta).astype(np.int64)
    power_Q = np.cumprod([1.0] + [float(min(num_voters, max_base))] * beta)
    order_E = np.argsort(-power_Q[bin_VE + beta].sum(0), kind="stable")
    place_E = np.empty_like(order_E)
    place_E[order_E] = np.arange(spec.num_experts)
    choice_VE = np.argpartition(place_E - bin_VE * spec.num_experts, spec.top_k - 1, 1)
    keep[choice_VE[:, : spec.top_k]] = True
    if pin_top1:
        keep[logits_VE.argmax(1)] = True
    moved_V = ~keep[own_ids[voting]].all(1)
    moved = np.flatnonzero(voters)[moved_V]
    kept_N = np.flatnonzero(keep)
    logits_VN = logits_VE[moved_V][:, kept_N]
    best_VK = np.argsort(-logits_VN, axis=1, kind="stable")[:, : spec.top_k]  # equal logits: lowest id
    chosen_VK = np.take_along_axis(logits_VN, best_VK, 1)
    if chosen_VK.size and chosen_VK.min() == -np.inf:
        return None
    ids, weights = own_ids.copy(), own_weights.copy()
    exp_VK = np.exp(chosen_VK - chosen_VK[:, :1])
    mass_V1 = spec.scale if spec.renormalize else own_weights[moved].sum(1, keepdims=True)
    ids[moved] = kept_N[best_VK]
    weights[moved] = exp_VK / exp_VK.sum(1, keepdims=True) * mass_V1
    return _guarded(own_ids, own_weights, ids, weights, valid, len(moved))


def _rows(top_T: Array, rows: Rows | None) -> tuple[Array | None, Array]:
    """(valid, voters): bool [T]; valid None: all. top_T is a row's largest logit, NaN if it has one anywhere."""
    valid = None if rows is None or rows.valid is None else rows.valid.numpy()
    voters = np.isfinite(top_T)
    if rows is not None and rows.remap is not None:
        voters &= rows.remap.numpy()
    if rows is not None and rows.price is not None:
        voters &= rows.price.numpy() > 0
    return valid, voters if valid is None else voters & valid


def _guarded(
    own_ids: Array, own_weights: Array, ids: Array, weights: Array, valid: Array | None, num_moved: int
) -> Routing:
    """The decision with its counts, or the model's own routing if that loads less."""
    before, after = (len(set((i if valid is None else i[valid]).ravel().tolist())) for i in (own_ids, ids))
    if after > before:
        return _padded(own_ids.copy(), own_weights.copy(), valid, (before, before, 0))
    return _padded(ids, weights, valid, (before, after, num_moved))


def count(own_TK: Tensor, final_TK: Tensor, valid_T: Tensor | None) -> tuple[int, int, int]:
    """Distinct experts of the valid rows before and after, and how many of these rows changed."""
    own = _valid_rows(own_TK, valid_T)
    before = len(set().union(*own))
    if final_TK is own_TK:
        return before, before, 0
    final = _valid_rows(final_TK, valid_T)
    return before, len(set().union(*final)), sum(a != b for a, b in zip(own, final, strict=True))


def _valid_rows(ids_TK: Tensor, valid_T: Tensor | None) -> list[list[int]]:
    rows: list[list[int]] = ids_TK.tolist()
    return rows if valid_T is None else [row for row, ok in zip(rows, valid_T.tolist(), strict=True) if ok]


def _padded(ids: Array, weights: Array, valid: Array | None, counts: tuple[int, int, int] | None = None) -> Routing:
    """Padding rows repeat the first valid row's ids with weight 0."""
    if valid is not None and not valid.all():
        ids = np.where(valid[:, None], ids, ids[valid.argmax()])
        weights = np.where(valid[:, None], weights, np.float32(0))
    return Routing(torch.from_numpy(ids), torch.from_numpy(weights), counts)
