"""Whole decisions as compiled loops on the CPU (numba), for routers that rank by their logits and score by softmax.

A decision of 75 small torch operations takes 570 µs inside a real step, where the caches are full of weights, and 50 µs
as one loop (docs/vllm.md has the command). Ids equal the definition's exactly, weights within float32 rounding.

Shapes: T rows, E experts, K = top_k.
"""

import importlib.util
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.routing import RouterSpec, Routing, Rows, select

AVAILABLE = importlib.util.find_spec("numba") is not None


def fits(logits_TE: Tensor, spec: RouterSpec) -> bool:
    """Whether the loops compute this router's rule, here."""
    plain = spec.scoring == "softmax" and spec.bias is None and spec.groups is None
    return AVAILABLE and plain and logits_TE.device.type == "cpu" and len(logits_TE) > 0


def affinity_binning(
    logits_TE: Tensor,
    spec: RouterSpec,
    rows: Rows | None,
    own: Routing | None,
    *,
    alpha: float | None,
    beta: int,
    rank: int,
    max_base: int,
    pin_top1: bool,
) -> Routing:
    """`Lynx.route`. alpha None: beta over the voters' median distance from the favourite down to `rank`."""
    from lynx_moe.kernels.loops import affinity_binning as loops

    own = own or select(logits_TE, spec)
    valid_T, remap_T = masks(rows, len(logits_TE))
    ids_TK, weights_TK = loops(
        logits_TE.float().numpy(),
        own.ids.long().numpy(),
        own.weights.float().numpy(),
        valid_T,
        remap_T,
        np.float32(-1.0 if alpha is None else alpha),
        beta,
        rank,
        max_base,
        pin_top1,
        spec.renormalize,
        np.float32(spec.scale),
    )
    return Routing(torch.from_numpy(ids_TK), torch.from_numpy(weights_TK))


def count(own_TK: Tensor, final_TK: Tensor, num_experts: int, valid_T: Tensor | None) -> tuple[int, int, int]:
    """Distinct experts of the valid rows before and after, and how many rows changed; tensors on the CPU."""
    from lynx_moe.kernels.loops import count as loops

    valid = np.ones(len(own_TK), dtype=np.bool_) if valid_T is None else valid_T.numpy()
    counts: tuple[int, int, int] = loops(own_TK.numpy(), final_TK.numpy(), valid, num_experts)
    return counts


def masks(rows: Rows | None, num_rows: int) -> tuple[Any, Any]:
    """(valid, remap) as bool arrays [T]."""
    given = (None, None) if rows is None else (rows.valid, rows.remap)
    valid, remap = (np.ones(num_rows, dtype=np.bool_) if m is None else m.numpy() for m in given)
    return valid, remap
