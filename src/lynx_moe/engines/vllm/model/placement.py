"""Which expert-parallel rank has which experts of a layer, as vLLM has laid them out, and whose tokens it routes."""

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

from lynx_moe.policies import ONE_RANK, Placement


def placement_of(module: Any, device: torch.device) -> tuple[Placement | None, torch.Tensor | None]:
    """(the placement, bool [E]: the experts of this rank) of vLLM's MoE layer `module`.

    Without expert parallelism (one rank, and no flags). Where the load balancer (EPLB) is on an expert is on all ranks
    that hold a copy, by the map that vLLM's own router reads in the same step; no flags there, since which copy a row
    goes to is settled later. No flags under data parallelism either: what a rank loads there is for the tokens of all
    ranks, and it routes its own alone.
    """
    manager, state = module.expert_map_manager, module.router.eplb_state
    if manager.ep_size == 1:
        return ONE_RANK, None
    ranks = torch.empty(manager.global_num_experts, dtype=torch.int64, device="cpu")
    for rank in range(manager.ep_size):
        _, map_E, _ = determine_expert_map(
            manager.ep_size, rank, manager.global_num_experts, manager.placement_strategy
        )
        ranks[map_E.cpu() >= 0] = rank
    here_RP = (ranks == torch.arange(manager.ep_size)[:, None]).to(device)
    if state is not None:
        return Placement(manager.ep_size, lambda: with_copies(here_RP, state.logical_to_physical_map)), None
    return Placement.fixed(here_RP), None if module.moe_config.dp_size > 1 else here_RP[manager.ep_rank]


def with_copies(here_RP: torch.Tensor, physical_EC: torch.Tensor) -> torch.Tensor:
    """bool [R, E]: the ranks that hold a copy of an expert. here_RP: those of each of P physical experts; physical_EC:
    the physical experts of each, the first ones of its row, -1 behind them."""
    most = 1 + here_RP.shape[1] - len(physical_EC)  # copies of one: vLLM has columns for many more
    physical_EC = physical_EC[:, :most]
    return (here_RP[:, physical_EC.clamp(min=0)] & (physical_EC >= 0)).any(-1)


def gathers_first(module: Any) -> bool:
    """Whether vLLM's MoE layer gathers the tokens of all data-parallel ranks before it routes: quantisation methods
    without a modular kernel do, which is known once the weights are loaded."""
    return bool(getattr(module, "do_naive_dispatch_combine", False))
