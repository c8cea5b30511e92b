"""Launching the two kernels of a decision. Imports Triton, so engines reach it through the package only."""

from typing import Any

import torch
import triton
from torch import Tensor

from lynx_moe.kernels.gpu.keep import keep_kernel
from lynx_moe.kernels.gpu.layout import size
from lynx_moe.kernels.gpu.reroute import reroute_kernel
from lynx_moe.kernels.gpu.rule import Vote
from lynx_moe.routing import RouterSpec, Routing, Rows

TILE, PER_THREAD = 8192, 16  # elements of a tile of rows; more in a thread spill its registers
SLOT_TILE = 2048  # slots of a tile of `prices.py`, which are float64
MOST = 1e30  # policies/priced.py
LEAST_ROWS = 16  # fewer are padded: every size of a tile is compiled by itself, for seconds


def two_launches(logits_TE: Tensor, spec: RouterSpec, rows: Rows | None, own: Routing, vote: Vote) -> Routing:
    """The decision of a policy whose experts stay by `vote`."""
    num_rows, num_experts = logits_TE.shape
    if logits_TE.stride(1) != 1:
        logits_TE = logits_TE.contiguous()
    own_ids, own_weights = own.ids.contiguous(), own.weights.contiguous()
    rows = rows or Rows()
    valid, remap, prices, chances, costs = rows.valid, rows.remap, rows.price, rows.chance, rows.load_cost_E
    ids, weights = torch.empty_like(own_ids), torch.empty_like(own_weights, dtype=torch.float32)
    state = torch.empty(size(num_rows, num_experts), dtype=torch.int64, device=logits_TE.device)
    counts = torch.empty(4, dtype=torch.int64, device=logits_TE.device)
    shape = {**_shape(spec), "VALID": valid is not None}
    columns = shape["GP"] * shape["MP"]
    rows_padded = max(LEAST_ROWS, triton.next_power_of_2(num_rows))
    sorts = (vote.rule == "bins" and vote.alpha is None) or (vote.rule == "price" and prices is not None)
    tile_rows = min(rows_padded, max(1, TILE // columns))
    keep_kernel[(1,)](
        *(logits_TE, logits_TE.stride(0), own_ids, own_weights, valid, remap, prices, chances, costs, spec.bias),
        *(vote.given_E, state),
        *(num_rows, vote.alpha or 0.0, vote.number, vote.seed, min(vote.price, MOST), vote.part, vote.alone or 0.0),
        MODE=vote.rule,
        OPEN=vote.rule == "bins" and vote.alpha is None,
        BETA=vote.beta,
        RANK=vote.rank,
        MAX_BASE=min(vote.max_base, 2**30),
        PINNED=vote.pinned,
        REMAP=remap is not None,
        R=tile_rows,
        TP=rows_padded if sorts else 1,
        S=min(rows_padded, max(1, SLOT_TILE // shape["KP"])) if vote.passes else 1,
        PASSES=vote.passes,
        STEEP=vote.steep,
        SLOPE=vote.slope,
        GAINS=vote.given_E is not None,
        PRICES=prices is not None,
        CHANCES=chances is not None,
        COSTS=costs is not None,
        ALONE=vote.alone is not None,
        num_warps=max(4, min(16, tile_rows * columns // (32 * PER_THREAD))),
        **shape,
    )
    reroute_kernel[(num_rows,)](
        *(logits_TE, logits_TE.stride(0), own_ids, own_weights, valid, spec.bias, spec.expert_scale, state),
        *(ids, weights, counts, num_rows, spec.scale, vote.power or 0.0),
        RENORM=spec.renormalize,
        FACTORS=spec.expert_scale is not None,
        DROPS=vote.power is not None,
        num_warps=1 if columns <= 256 else 2,
        **shape,
    )
    return Routing(ids, weights, counts)


def _shape(spec: RouterSpec) -> dict[str, Any]:
    """The constants that both kernels are compiled for."""
    n_group, topk_group = spec.groups or (1, 1)
    members = spec.num_experts // n_group
    return {
        "E": spec.num_experts,
        "K": spec.top_k,
        "KP": triton.next_power_of_2(spec.top_k),
        "G": n_group,
        "M": members,
        "GP": triton.next_power_of_2(n_group),
        "MP": triton.next_power_of_2(members),
        "TOPG": topk_group,
        "SCORING": spec.scoring,
        "BIASED": spec.bias is not None,
    }
