"""Which expert-parallel rank has which experts of a layer, as vLLM has laid them out, and whose tokens it routes."""

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

from lynx_moe.policies import ONE_RANK, Placement


def placement_of(module: Any, device: torch.device) -> tuple[Placement | None, torch.Tensor | None]:
    """(the placement, bool [E]: the experts of this rank) of vLLM's MoE layer `module`.

    Without expert parallelism (one rank, and no flags). (None, None) where the load balancer (EPLB) is on: it keeps
    copies of experts, and moves them. No flags under data parallelism either: what a rank loads there is for the tokens
    of all ranks, and it routes its own alone.
    """
    manager = module.expert_map_manager
    if module.router.eplb_state is not None:
        return None, None
    if manager.ep_size == 1:
        return ONE_RANK, None
    ranks = torch.empty(manager.global_num_experts, dtype=torch.int64, device="cpu")
    for rank in range(manager.ep_size):
        _, map_E, _ = determine_expert_map(
            manager.ep_size, rank, manager.global_num_experts, manager.placement_strategy
        )
        ranks[map_E.cpu() >= 0] = rank
    ranks = ranks.to(device)
    here_E = None if module.moe_config.dp_size > 1 else ranks == manager.ep_rank
    return Placement(manager.ep_size, ranks), here_E


def gathers_first(module: Any) -> bool:
    """Whether vLLM's MoE layer gathers the tokens of all data-parallel ranks before it routes: quantisation methods
    without a modular kernel do, which is known once the weights are loaded."""
    return bool(getattr(module, "do_naive_dispatch_combine", False))
