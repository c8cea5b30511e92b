"""A cache of experts on a device: which it holds, when the ones used last stay (LRU)."""

import torch
from torch import Tensor


def loads(used_LSE: Tensor, slots: int) -> Tensor:
    """int64 [L, S]: how many experts each of S consecutive steps loads into each layer's cache of `slots` experts.

    used_LSE: bool, the experts of a step. Those that the cache holds at its beginning need no load. What was used
    longest ago goes; experts of one step count as used in the order of their ids. The cache starts empty.
    """
    num_layers, num_steps, num_experts = used_LSE.shape
    clock_LE = torch.full((num_layers, num_experts), -1, dtype=torch.int64)
    found_LS = torch.zeros(num_layers, num_steps, dtype=torch.int64)
    order_E = torch.arange(num_experts)
    for step in range(num_steps):
        used_LE = used_LSE[:, step]
        newest = clock_LE.topk(min(slots, num_experts), -1)
        held_LE = torch.zeros_like(used_LE).scatter(-1, newest.indices, newest.values >= 0)
        found_LS[:, step] = (used_LE & ~held_LE).sum(-1)
        clock_LE = torch.where(used_LE, step * num_experts + order_E, clock_LE)
    return found_LS
