"""Numbers that travel from a device to the host while both go on."""

from typing import Any

import torch
from torch import Tensor


class Late:
    """Numbers on their way to the host, which goes on meanwhile."""

    def __init__(self, numbers: Tensor) -> None:
        self.event: Any = None
        self.host = numbers
        if numbers.is_cuda:
            self.host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.host.copy_(numbers, non_blocking=True)
            self.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.event.record()

    def take(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        numbers: list[float] = self.host.tolist()
        return numbers
