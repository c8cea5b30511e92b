"""The experts of one layer that are in memory: K slots; the next expert takes the one that was used longest ago."""

import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.engines.disk.source import Job, Source

EMPTY = -1
HELD = 0.125  # of an expert in memory, in reads of one that is not: docs/results/disk.md


@dataclass
class Sums:
    """Of one kind of step: experts that were read and that were there already, bytes read, seconds that the step waited
    for them, and rounds: how often a layer had to take its experts in turns, since they were more than its slots."""

    loads: int = 0
    hits: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rounds: int = 0


class Slots:
    """Of layer `number` of what is read from. `tables` [K, ...], one per part, are what a kernel takes."""

    def __init__(self, reader: Source, number: int, slots: int) -> None:
        region = reader.layers[number]
        self.reader, self.number = reader, number
        self.expert_K = np.full(slots, EMPTY, dtype=np.int64)
        self.slot_E = np.full(region.num_experts, EMPTY, dtype=np.int32)
        self.used_K = np.full(slots, EMPTY, dtype=np.int64)
        self.clock = 0
        self.tables: list[Tensor] = []
        self.views: list[list[memoryview]] = [[] for _ in range(slots)]
        for part in region.parts:
            memory = memoryview(mmap.mmap(-1, slots * part.bytes))  # begins at a page
            table = torch.frombuffer(memory, dtype=getattr(torch, part.dtype)).view(slots, *part.shape)
            self.tables.append(table)
            for slot, views in enumerate(self.views):
                views.append(memory[slot * part.bytes : (slot + 1) * part.bytes])

    def __len__(self) -> int:
        return len(self.expert_K)

    def load_cost(self) -> Tensor:
        """float32 [E]: 1 for an expert that has to be read, HELD for one that is there (`Rows.load_cost_E`)."""
        return torch.from_numpy(np.where(self.slot_E == EMPTY, np.float32(1), np.float32(HELD)))

    def turns(self, wanted: np.ndarray) -> list[np.ndarray]:
        """Ids, in turns of at most K: those that are there come first, before others need their place."""
        there = self.slot_E[wanted] != EMPTY
        ordered = np.concatenate((wanted[there], wanted[~there]))
        return [ordered[start : start + len(self)] for start in range(0, len(ordered), len(self))]

    def hold(self, wanted: np.ndarray, sums: Sums) -> np.ndarray:
        """Reads what is missing of these at most K distinct experts; returns the slot of every expert, int32 [E], EMPTY
        for those that are not there.

        Raises ReadError; the slots that were to be read into are then empty.
        """
        missing = wanted[self.slot_E[wanted] == EMPTY]
        sums.hits += len(wanted) - len(missing)
        if len(missing):
            sums.bytes += self._load(missing, self._free(wanted, len(missing)), sums)
            sums.loads += len(missing)
        self.used_K[self.slot_E[wanted]] = self.clock + np.arange(len(wanted))
        self.clock += len(self.slot_E)
        return self.slot_E

    def _free(self, wanted: np.ndarray, count: int) -> np.ndarray:
        """So many slots, emptied: none that holds an expert that is wanted."""
        keeps = self.slot_E[wanted]
        used_K = self.used_K.copy()
        used_K[keeps[keeps != EMPTY]] = np.iinfo(np.int64).max
        taken = np.argsort(used_K, kind="stable")[:count]
        gone = self.expert_K[taken]
        self.slot_E[gone[gone != EMPTY]] = EMPTY
        self.expert_K[taken], self.used_K[taken] = EMPTY, EMPTY
        return taken

    def _load(self, missing: np.ndarray, taken: np.ndarray, sums: Sums) -> int:
        start = time.perf_counter()
        pairs: Sequence[tuple[Any, Any]] = list(zip(missing.tolist(), taken.tolist(), strict=True))
        read = self.reader.read([Job(self.number, expert, self.views[slot]) for expert, slot in pairs])
        sums.seconds += time.perf_counter() - start
        self.slot_E[missing], self.expert_K[taken] = taken, missing
        return read
