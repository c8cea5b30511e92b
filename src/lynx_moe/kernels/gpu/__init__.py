"""Whole decisions of keep-set policies in two Triton kernels, for GPUs: votes -> experts that stay -> rerouted rows.

No host sync, fixed grids, all scratch memory written before it is read: a CUDA graph records them. Ids equal the
definition's exactly, weights within float32 rounding. Triton is imported when a decision is first taken here;
TRITON_INTERPRET=1 runs the same kernels on a CPU, for tests.
"""

import os

from torch import Tensor

from lynx_moe.kernels.gpu.rule import Vote
from lynx_moe.routing import RouterSpec, Routing, Rows

__all__ = ["Vote", "decide", "fits", "obstacle"]

MAX_ROWS, MAX_EXPERTS = 512, 512


def obstacle(spec: RouterSpec, *, weighs: bool = True) -> str | None:
    """Why the plain-torch definition is taken instead of the kernels; None if they compute the router's rule.

    weighs: whether rows get weights by the router's rule, or only keep their own."""
    if weighs and spec.scoring == "sparsemixer":
        return "a sparsemixer's weights have no kernel"
    return f"{spec.num_experts} experts are more than {MAX_EXPERTS}" if spec.num_experts > MAX_EXPERTS else None


def fits(logits_TE: Tensor) -> bool:
    """Whether the kernels run here, and take a step of so many rows."""
    here = logits_TE.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return here and 0 < len(logits_TE) <= MAX_ROWS


def decide(logits_TE: Tensor, spec: RouterSpec, rows: Rows | None, own: Routing, vote: Vote) -> Routing:
    """`Policy.route` of a policy that keeps a set of experts. ids have the type of own.ids; counts is int64 [4] on the
    device."""
    from lynx_moe.kernels.gpu.launch import two_launches

    return two_launches(logits_TE, spec, rows, own, vote)
