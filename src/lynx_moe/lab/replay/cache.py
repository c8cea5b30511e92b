"""A cache of experts on a device: which it holds, when the ones used last stay (LRU)."""

import torch
from torch import Tensor


class Cache:
    """The caches of L layers, of `slots` experts each, empty at first. What was used longest ago goes; experts of one
    step count as used in the order of their ids."""

    def __init__(self, num_layers: int, num_experts: int, slots: int) -> None:
        self._slots, self._step = min(slots, num_experts), 0
        self._clock_LE = torch.full((num_layers, num_experts), -1, dtype=torch.int64)
        self._order_E = torch.arange(num_experts)

    def held(self) -> Tensor:
        """bool [L, E]: what a step finds there, which needs no load."""
        newest = self._clock_LE.topk(self._slots, -1)
        return torch.zeros_like(self._clock_LE, dtype=torch.bool).scatter(-1, newest.indices, newest.values >= 0)

    def use(self, used_LE: Tensor) -> None:
        """A step has used these."""
        self._clock_LE = torch.where(used_LE, self._step * len(self._order_E) + self._order_E, self._clock_LE)
        self._step += 1


def loads(used_LSE: Tensor, slots: int) -> Tensor:
    """int64 [L, S]: how many experts each of S consecutive steps loads into each layer's cache; used_LSE: bool, the
    experts of a step."""
    num_layers, num_steps, num_experts = used_LSE.shape
    cache = Cache(num_layers, num_experts, slots)
    found_LS = torch.zeros(num_layers, num_steps, dtype=torch.int64)
    for step in range(num_steps):
        used_LE = used_LSE[:, step]
        found_LS[:, step] = (used_LE & ~cache.held()).sum(-1)
        cache.use(used_LE)
    return found_LS
