"""The experts' forward pass for training on a CPU: tokens sorted by expert, one small product per expert.

Measured on two threads of a Xeon (AMX), whole training steps of 4,096 tokens, 4 layers of 64 experts, top-8, width 32:
13.8k tokens/s in float32 and 2.2k in bfloat16, against 9.7k for transformers' `grouped_mm`. Computing all experts for
all tokens gives 2.9k in float32 and 6.5k in bfloat16.

T tokens, K experts per token, S = T * K slots, D hidden width, F expert width.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.moe import ExpertsInterface

NAME = "lynx_moe_sorted"


class Experts(Protocol):
    """What transformers calls a module of fused experts: gate_up_proj [E, 2 F, D] and down_proj [E, D, F]."""

    gate_up_proj: Tensor
    down_proj: Tensor


def sorted_experts(self: Experts, hidden_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Weighted sum of the chosen gated experts, [T, D]; the signature is transformers' `ExpertsInterface`."""
    top_k = ids_TK.shape[1]
    order_S = ids_TK.flatten().argsort(stable=True)
    counts = torch.bincount(ids_TK.flatten(), minlength=self.gate_up_proj.shape[0]).tolist()
    rows_S = order_S.div(top_k, rounding_mode="floor")
    groups = torch.split(hidden_TD.index_select(0, rows_S), counts)
    gate_up_S = torch.cat([x @ w.t() for x, w in zip(groups, self.gate_up_proj.unbind(), strict=True)])
    gate_SF, up_SF = gate_up_S.chunk(2, dim=-1)
    inner_SF = F.silu(gate_SF) * up_SF * weights_TK.flatten()[order_S, None]
    out_SD = torch.cat([x @ w.t() for x, w in zip(torch.split(inner_SF, counts), self.down_proj.unbind(), strict=True)])
    return torch.zeros_like(hidden_TD).index_add(0, rows_S, out_SD)


def register() -> str:
    """Make `experts_implementation=NAME` known to transformers; returns the name."""
    ExpertsInterface.register(NAME, sorted_experts)
    return NAME
