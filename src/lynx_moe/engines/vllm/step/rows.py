"""Which rows of a step may be remapped, from the model runner's own request state.

A row (token) may be remapped iff its request is past its prompt and schedules this one token: a decode row. All other
rows keep the model's routing and donate their experts: prompt tokens, chunks of prompts (in mixed batches too), and the
tokens that a preempted request computes again in bulk when it comes back. These were generated under remapping, but a
bulk recomputation is compute-bound like a prefill: remapping would save nothing and would reach further into the cache.

Shapes: R requests of a step, T rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.routing import Rows

EXACT_ROW, OWN_ROW = -1, -2  # in place of a policy's number: exact by request; a policy that changes nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What the requests of a step ask: a price for all, or float32 [R]. mixed: whether requests of one group differ.
    server_R: bool, who follows the server's policy; None: all."""

    price: float | np.ndarray = 1.0
    mixed: bool = False
    server_R: np.ndarray | None = None


class StepRows:
    """The masks and prices of the current step, in persistent buffers of max_num_batched_tokens rows that CUDA graphs
    can record (`graphs`: they do).

    On the CPU the buffers are the tensors themselves; for a GPU each step makes a fresh pinned copy, because the
    previous step's transfer may still be reading the old one.
    """

    def __init__(self, max_rows: int, device: torch.device, *, graphs: bool = False) -> None:
        self.valid = torch.ones(max_rows, dtype=torch.bool, device=device)
        self.remap = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self.price = torch.zeros(max_rows, dtype=torch.float32, device=device)  # models are built under another default
        buffers = (self.valid, self.remap, self.price)
        self.host = None if device.type != "cpu" else tuple(buffer.numpy() for buffer in buffers)  # the same memory
        self.always = graphs or device.type != "cpu"
        self.kind, self.mixed = Kind.IDLE, False
        self.server: torch.Tensor | None = None
        self.num_rows = self.num_decode_rows = self.num_exact_rows = 0
        self.asked_T = np.zeros(0, dtype=np.float32)  # of rows that may be remapped
        self.groups: list[torch.Tensor] = []
        self._masks: dict[int, Rows | None] = {}  # of this step, by the rows that an operator sees

    def idle(self) -> None:
        """A dummy or profile run: every row is taken as real (memory profiling routes them), none may be remapped."""
        self._write(np.zeros(0, dtype=bool), len(self.valid), np.zeros(0, dtype=np.float32))
        self.mixed, self.server = False, None
        self.kind, self.num_rows, self.num_decode_rows, self.num_exact_rows = Kind.IDLE, 0, 0, 0
        self.groups = []

    def fill(
        self,
        past_prompt_R: np.ndarray,
        scheduled_R: np.ndarray,
        choice_R: np.ndarray | None = None,
        asked: Asked = Asked(),
    ) -> None:
        """past_prompt_R: bool, the request has no prompt token left to compute. scheduled_R: its rows in this step, in
        the order of the batch. choice_R: the number of its policy in this step, EXACT_ROW or OWN_ROW; None: the
        server's policy for all. `groups` then holds each policy's rows, bool [max_rows], and is empty otherwise."""
        decode_R = past_prompt_R & (scheduled_R == 1)
        remap_R = decode_R if choice_R is None else decode_R & (choice_R >= 0)
        remap_T = np.repeat(remap_R, scheduled_R)
        price = np.repeat(np.broadcast_to(np.float32(asked.price), len(scheduled_R)), scheduled_R)
        self._write(remap_T, len(remap_T), price if asked.mixed or self.always else None)
        self.mixed, self.asked_T = asked.mixed, price[remap_T]
        self.num_rows, self.num_decode_rows = len(remap_T), int(remap_R.sum())
        num_decode = self.num_decode_rows if choice_R is None else int(decode_R.sum())
        self.num_exact_rows = 0 if choice_R is None else int((decode_R & (choice_R == EXACT_ROW)).sum())
        if not num_decode:
            self.kind = Kind.PREFILL
        elif self.num_rows > num_decode:
            self.kind = Kind.MIXED
        else:
            self.kind = Kind.SINGLE if self.num_rows == 1 else Kind.DECODE
        self.groups, self.server = [], None
        if asked.server_R is not None:
            self.server = self._mask(np.repeat(remap_R & asked.server_R, scheduled_R))
        if choice_R is not None:
            choice_T = np.repeat(np.where(remap_R, choice_R, -1), scheduled_R)
            self.groups = [self._mask(choice_T == number) for number in range(choice_R.max() + 1)]

    def masks(self, num_rows: int) -> Rows | None:
        """The masks for an operator that sees num_rows rows. None: every row may be remapped and none is padding (CPU
        only: what a CUDA graph records must not depend on the step). A step's layers share them: three slices with
        swept caches cost as much as a decision."""
        if num_rows not in self._masks:
            self._masks[num_rows] = self._views(num_rows)
        return self._masks[num_rows]

    def _views(self, num_rows: int) -> Rows | None:
        price = self.price[:num_rows] if self.mixed or self.always else None
        if self.always or num_rows != self.num_rows:
            return Rows(valid=self.valid[:num_rows], remap=self.remap[:num_rows], price=price)
        if price is None and self.num_decode_rows == num_rows > 1:
            return None
        return Rows(remap=self.remap[:num_rows], price=price)

    def tiers(self) -> dict[float, int]:
        """Price -> the rows of the step that ask it, of those that may be remapped."""
        prices, counts = np.unique(self.asked_T, return_counts=True)
        return dict(zip(prices.tolist(), counts.tolist(), strict=True))

    def _mask(self, rows_T: np.ndarray) -> torch.Tensor:
        mask = torch.zeros(len(self.valid), dtype=torch.bool)
        mask[: len(rows_T)] = torch.from_numpy(rows_T)
        return mask.to(self.valid.device)

    def _write(self, remap_T: np.ndarray, num_valid: int, price_T: np.ndarray | None) -> None:
        """Begins a step. price_T None: nobody will read it."""
        self._masks = {}
        if self.host is not None:
            valid, remap, price = self.host
            if price_T is not None:
                price[: len(remap_T)], price[len(remap_T) :] = price_T, 0.0
            remap[: len(remap_T)], remap[len(remap_T) :] = remap_T, False
            valid[:num_valid], valid[num_valid:] = True, False
            return
        host = torch.zeros(2, len(self.valid), dtype=torch.bool, pin_memory=True)
        host[0, :num_valid] = True
        host[1, : len(remap_T)] = torch.from_numpy(remap_T)
        asked = torch.zeros(len(self.valid), dtype=torch.float32, pin_memory=True)
        if price_T is not None:
            asked[: len(remap_T)] = torch.from_numpy(price_T)
        self.price.copy_(asked, non_blocking=True)
        self.valid.copy_(host[0], non_blocking=True)
        self.remap.copy_(host[1], non_blocking=True)


def from_v1_runner(runner: Any, num_scheduled_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(past_prompt_R, scheduled_R) from vLLM's V1 runner (`gpu_model_runner.py`, parent of the CPU runner), valid once
    `_prepare_inputs` has fixed the order of the batch."""
    batch = runner.input_batch
    num_reqs = batch.num_reqs
    past_prompt_R = batch.num_computed_tokens_cpu[:num_reqs] >= batch.num_prompt_tokens[:num_reqs]
    return past_prompt_R, num_scheduled_R


def from_v2_batch(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """The same from the InputBatch of Model Runner V2. Its notion of prefill includes what a preempted request
    computes again."""
    return ~batch.is_prefilling_np[: batch.num_reqs], batch.num_scheduled_tokens[: batch.num_reqs]
