"""A layer's experts run once more, by another routing: what a shadow step compares."""

from typing import Any

import torch
from torch import Tensor

from lynx_moe.routing import Routing


def block_output(runner: Any, hidden_TH: Tensor, routing: Routing) -> Tensor:
    """[T, H]: what the routed experts of vLLM's `MoERunner` give, summed over the ranks; shared experts are left out.

    Called inside the operator, so it works in eager and compiled models alike. The kernel may write into its input.
    """
    ids = routing.ids.to(runner._quant_method.topk_indices_dtype or torch.int32)
    weights = routing.weights.float().contiguous()
    out: Tensor = runner.routed_experts.forward_modular(x=hidden_TH.clone(), topk_weights=weights, topk_ids=ids)
    config = runner.moe_config
    if (config.tp_size > 1 or config.ep_size > 1) and not runner._fused_output_is_reduced:
        from vllm.distributed import tensor_model_parallel_all_reduce

        out = tensor_model_parallel_all_reduce(out)
    return out


def same_on_all_ranks(number: Tensor) -> Tensor:
    """The first tensor-parallel rank's value: the last bit of a sum over ranks may differ between them."""
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    return number if group.world_size == 1 else group.broadcast(number.contiguous(), src=0)
