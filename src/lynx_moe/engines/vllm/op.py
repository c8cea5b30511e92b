"""The operator that vLLM's graphs see: opaque to torch.compile, so that a step's state can be read inside.

Defined on a torch Library and not with `torch.library.custom_op`, whose Python wrappers cost more per call than the
rest of this file (measured in docs/vllm.md). Outputs must not alias inputs, hence the copies of the model's own routing
where nothing changes: T x K numbers each.
"""

import torch
from torch import Tensor

from lynx_moe.engines.vllm.plan import active

_library = torch.library.Library("lynx_moe", "FRAGMENT")
_library.define("reroute(Tensor logits, Tensor weights, Tensor ids, int layer) -> (Tensor, Tensor)")


def _reroute(logits_TE: Tensor, weights_TK: Tensor, ids_TK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """(weights, ids) for the expert kernel: contiguous float32, and contiguous ids of the given type."""
    final = active().reroute(logits_TE, weights_TK, ids_TK, layer)
    if final is None:
        return _copy(weights_TK, torch.float32), _copy(ids_TK, ids_TK.dtype)
    return final.weights.float().contiguous(), final.ids.to(ids_TK.dtype).contiguous()


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _reroute_fake(logits_TE: Tensor, weights_TK: Tensor, ids_TK: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    return weights_TK.new_empty(weights_TK.shape, dtype=torch.float32), ids_TK.new_empty(ids_TK.shape)


_library.impl("reroute", _reroute, "CompositeExplicitAutograd")
torch.library.register_fake("lynx_moe::reroute", _reroute_fake, lib=_library)

reroute = torch.ops.lynx_moe.reroute.default
