"""The operators that vLLM's graphs see: opaque to torch.compile, so that a step's state can be read inside.

A model that drafts is built beside the one that verifies, with layers of the same numbers: `drafts` tells them apart.

Outputs must not alias inputs, hence the copies of the model's own routing where nothing changes: T x K numbers each.
Where nobody traces, the same is called without the operator and its copies.
"""

import torch
from torch import Tensor

from lynx_moe.engines.vllm.step.plan import active


def decided(
    logits: Tensor, weights: Tensor, ids: Tensor, layer: int, hidden: Tensor | None = None, drafts: bool = False
) -> tuple[Tensor, Tensor]:
    """(weights, ids) for the expert kernel: [T, K] contiguous float32, and contiguous ids of the given type; the very
    tensors that were given where nothing changes.

    logits [T, E], weights [T, K] and ids [T, K] are the model's own; `layer` is the layer's number in the active plan,
    or with `drafts` in that of its drafter.
    hidden [T, H], the input of its experts, is what a quality guard runs them on once more.
    """
    final = active(drafts=drafts).reroute(logits, weights, ids, layer, hidden)
    if final is None:
        return weights, ids
    return final.weights.float().contiguous(), final.ids.to(ids.dtype).contiguous()


@torch.library.custom_op("lynx_moe::reroute", mutates_args=())
def reroute(
    logits: Tensor, weights: Tensor, ids: Tensor, layer: int, hidden: Tensor | None = None, drafts: bool = False
) -> tuple[Tensor, Tensor]:
    """`decided`, but for aliases: always contiguous float32 weights, and copies."""
    final_weights, final_ids = decided(logits, weights, ids, layer, hidden, drafts)
    if final_weights is weights or final_ids is ids:
        return _copy(final_weights, torch.float32), _copy(final_ids, ids.dtype)
    return final_weights, final_ids


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


@reroute.register_fake
def _(
    logits: Tensor, weights: Tensor, ids: Tensor, layer: int, hidden: Tensor | None = None, drafts: bool = False
) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape, dtype=torch.float32), ids.new_empty(ids.shape)


@torch.library.custom_op("lynx_moe::paged_experts", mutates_args=("output",))
def paged_experts(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor, layer: int) -> None:
    """Fills output [T, H] by the experts of a layer that lie on a disk (`paged.py`); `layer` is its number there."""
    active().paged.compute(output, hidden, weights, ids, layer)


@paged_experts.register_fake
def _(output: Tensor, hidden: Tensor, weights: Tensor, ids: Tensor, layer: int) -> None:
    return None
