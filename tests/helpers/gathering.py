"""Collectives of different sizes for vLLM 0.32's CPU communicator, which has none: data parallelism ends in
NotImplementedError without them. With torch's own, over gloo."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather, all_reduce
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


def all_gatherv(self: Any, given: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """Each rank's rows, one after another; gloo wants equal sizes, so shorter ones are padded on the way."""
    if isinstance(given, list):
        return [all_gatherv(self, one, dim, sizes) for one in given]
    assert dim == 0
    sizes = sizes or [len(given)] * self.world_size
    mine = given.new_zeros((max(sizes), *given.shape[1:]))
    mine[: len(given)] = given
    parts = [torch.empty_like(mine) for _ in sizes]
    all_gather(parts, mine, group=self.device_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(self: Any, given: Tensor, dim: int = 0, sizes: list[int] | None = None) -> Tensor:
    """This rank's rows of the sum over ranks."""
    assert dim == 0
    total = given.clone(memory_format=torch.contiguous_format)
    all_reduce(total, group=self.device_group)
    return total.split(sizes or len(given) // self.world_size)[self.rank_in_group]


CpuCommunicator.all_gatherv, CpuCommunicator.reduce_scatterv = all_gatherv, reduce_scatterv
