"""The experts of one layer while the model runs: what stands where its parameters were.

transformers' own loop goes through the step's experts by number, and takes one row of each parameter at a time. A row
is a view of the slot that its expert lies in, so the arithmetic is the model's own, in its own order, bit for bit: for
any number of slots.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from lynx_moe.engines.disk.slots import Slots
from lynx_moe.engines.disk.store import Store


class Held:
    """Of layer `number` of the store."""

    def __init__(self, store: Store, number: int, name: str) -> None:
        self.store, self.name = store, name
        self.slots: Slots = store.layers[number]
        self.wanted: np.ndarray = np.empty(0, dtype=np.int64)
        self.there: set[int] = set()

    def forward(self, original: Callable[..., Any], hidden: Tensor, ids: Tensor, weights: Tensor) -> Any:
        """Around the experts' forward. Raises ReadError where one cannot be read, and ValueError where the model is
        used in a way that needs all experts at once."""
        if hidden.requires_grad or weights.requires_grad:
            raise ValueError(f"{self.name}: an offloaded model has no gradients, since its experts come and go")
        if hidden.device.type != "cpu":
            raise ValueError(f"{self.name}: an offloaded model runs on the CPU, and not on {hidden.device}")
        self.wanted, self.there = np.unique(ids.numpy()), set()
        if len(self.wanted) > len(self.slots):
            self.store.sums.rounds += 1
        return original(hidden, ids, weights)

    def row(self, part: int, expert: int) -> Tensor:
        """A parameter of one of the step's experts. Where it is not there, it is read together with those that the loop
        asks for after it, as many as there are slots."""
        if expert not in self.there:
            start = int(np.searchsorted(self.wanted, expert))
            turn = self.wanted[start : start + len(self.slots)]
            self.there = set()  # also if the read fails
            self.slots.hold(turn, self.store.sums)
            self.there = set(turn.tolist())
        return self.slots.tables[part][self.slots.slot_E[expert]]


class Rows:
    """In place of a parameter [E, ...] of the experts: takes the number of one expert, and nothing else."""

    def __init__(self, held: Held, part: int, shape: tuple[int, ...]) -> None:
        self.held, self.part, self.shape = held, part, shape

    def __getitem__(self, expert: Any) -> Tensor:
        return self.held.row(self.part, int(expert))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"{self.held.name}: its experts are offloaded, so a parameter gives one expert's row and has no {name!r}; "
            "experts run as 'eager' then (model.set_experts_implementation)"
        )
