"""Which rows of a step may be remapped, by what an engine says of its requests.

A row (token) may be remapped if its request is past its prompt and schedules this one token: a decode row. Rows that
verify a draft are the request's next token and, after it, its drafted ones; they may be remapped where it asks for that
(`Asked.verify`). All other rows keep the model's routing and donate their experts: prompt tokens, chunks of prompts (in
mixed batches too), and the tokens that a preempted request computes again in bulk when it comes back. These were
generated under remapping, but a bulk recomputation is compute-bound like a prefill: remapping would save nothing and
would reach further into the cache.

Shapes: R requests of a step, T rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.routing import Rows

EXACT_ROW, OWN_ROW = -1, -2  # in place of a policy's number: exact by request; a policy that changes nothing
CERTAIN = np.ones(1, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What the requests of a step ask: a price for all, or float32 [R]. mixed: whether requests of one group differ.
    server_R: bool, who follows the server's policy; None: all. verify: whether rows that verify a draft may be
    remapped, for all or bool [R]."""

    price: float | np.ndarray = 1.0
    mixed: bool = False
    server_R: np.ndarray | None = None
    verify: bool | np.ndarray = False


class StepRows:
    """The masks and prices of the current step, in persistent buffers of max_rows rows that CUDA graphs
    can record (`graphs`: they do). speculates: steps may verify drafts.

    On the CPU the buffers are the tensors themselves; for a GPU each step makes fresh pinned copies, because the
    previous step's transfer may still be reading the old ones.
    """

    def __init__(self, max_rows: int, device: torch.device, *, graphs: bool = False, speculates: bool = False) -> None:
        def buffer(dtype: torch.dtype) -> torch.Tensor:  # models are built under another default
            return torch.zeros(max_rows, dtype=dtype, device=device)

        self.valid, self.remap, self.price = buffer(torch.bool), buffer(torch.bool), buffer(torch.float32)
        self.request, self.depth, self.chance = buffer(torch.int64), buffer(torch.int64), buffer(torch.float32)
        self.valid.fill_(True)
        self.always = graphs or device.type != "cpu"
        self.speculates = speculates
        self.kind, self.mixed, self.drafted = Kind.IDLE, False, False
        self.server: torch.Tensor | None = None
        self.num_rows = self.num_decode_rows = self.num_exact_rows = 0
        self.num_verify_rows = self.num_verify_remappable = 0
        self.asked_T = np.zeros(0, dtype=np.float32)  # of rows that may be remapped
        self.price_T, self.remap_T = self.asked_T, np.zeros(0, dtype=bool)
        self.server_T: np.ndarray | None = None
        self.choice_T: np.ndarray | None = None
        self.groups: list[torch.Tensor] = []
        self._masks: dict[int, Rows | None] = {}  # of this step, by the rows that an operator sees

    def idle(self) -> None:
        """A dummy or profile run: every row is taken as real (memory profiling routes them), none may be remapped."""
        none, self._masks = np.zeros(0, dtype=np.float32), {}
        self._write(valid=np.ones(len(self.valid), dtype=bool), remap=none, price=none)
        self.mixed, self.drafted, self.server, self.server_T = False, False, None, None
        self.price_T, self.remap_T, self.choice_T = none, none > 0, None
        self.kind, self.num_rows, self.num_decode_rows, self.num_exact_rows = Kind.IDLE, 0, 0, 0
        self.num_verify_rows = self.num_verify_remappable = 0
        self.groups = []

    def fill(
        self,
        past_prompt_R: np.ndarray,
        scheduled_R: np.ndarray,
        choice_R: np.ndarray | None = None,
        asked: Asked = Asked(),
        drafts_R: np.ndarray | None = None,
        chances: np.ndarray = CERTAIN,
    ) -> None:
        """past_prompt_R: bool, the request has no prompt token left to compute. scheduled_R: its rows in this step, in
        the order of the batch. choice_R: the number of its policy in this step, EXACT_ROW or OWN_ROW; None: the
        server's policy for all. `groups` then holds each policy's rows, bool [max_rows], and is empty otherwise.
        drafts_R: how many of its rows are drafted tokens, the last ones; None: none. chances: float32, by depth in the
        draft, that a row's token is committed; deeper rows have the last one's."""
        self._masks = {}
        may_R, verify_R = decoding(past_prompt_R, scheduled_R, drafts_R, asked.verify)
        remap_R = may_R if choice_R is None else may_R & (choice_R >= 0)
        remap_T = np.repeat(remap_R, scheduled_R)
        price = np.repeat(np.broadcast_to(np.float32(asked.price), len(scheduled_R)), scheduled_R)
        self.num_verify_rows = int(scheduled_R[verify_R].sum())
        self.num_verify_remappable = int(scheduled_R[verify_R & remap_R].sum())
        self.drafted = self.num_verify_remappable > 0
        self._write(valid=np.ones(len(remap_T), dtype=bool), remap=remap_T)
        if asked.mixed or self.always:
            self._write(price=price)
        if self.drafted or (self.always and self.speculates):
            self._write(**_places(scheduled_R, verify_R, chances))
        self.mixed, self.asked_T = asked.mixed, price[remap_T]
        self.price_T, self.remap_T = price, remap_T
        self.num_rows, self.num_decode_rows = len(remap_T), int(remap_T.sum())
        num_decode = int(scheduled_R[may_R].sum())
        self.num_exact_rows = 0 if choice_R is None else int(scheduled_R[may_R & (choice_R == EXACT_ROW)].sum())
        if not num_decode:
            self.kind = Kind.PREFILL
        elif self.num_rows > num_decode:
            self.kind = Kind.MIXED
        else:
            self.kind = Kind.SINGLE if self.num_rows == 1 else Kind.DECODE
        self.groups, self.server, self.server_T, self.choice_T = [], None, None, None
        if asked.server_R is not None:
            self.server_T = np.repeat(remap_R & asked.server_R, scheduled_R)
            self.server = self._mask(self.server_T)
        if choice_R is not None:
            self.choice_T = choice_T = np.repeat(np.where(remap_R, choice_R, -1), scheduled_R)
            self.groups = [self._mask(choice_T == number) for number in range(choice_R.max() + 1)]

    def ask(self, price_T: np.ndarray) -> None:
        """Other prices for the rows of this step, float32."""
        self._masks, self.mixed = {}, True
        self.price_T, self.asked_T = price_T, price_T[self.remap_T]
        self._write(price=price_T)

    def keep_own(self) -> None:
        """No row of this step may get other experts than its own."""
        self._masks = {}
        self._write(remap=self.remap_T[:0])

    @property
    def first_T(self) -> np.ndarray:
        """bool: rows that the first policy of the step decides for."""
        return self.remap_T if self.choice_T is None else self.choice_T == 0

    @contextmanager
    def instead(self, price_T: np.ndarray | None) -> Iterator[None]:
        """In here the rows ask other prices, or, with None, are all exact."""
        kept, mixed = self.price_T, self.mixed
        if price_T is None:
            self.keep_own()
            self._write(price=kept[:0])
        else:
            self.ask(price_T)
        try:
            yield
        finally:
            self.ask(kept)
            self.mixed = mixed
            self._write(remap=self.remap_T)

    @property
    def asking(self) -> bool:
        """Whether any row may get other experts than its own."""
        return self.num_decode_rows > 0 and (not self.mixed or bool(self.asked_T.any()))

    def masks(self, num_rows: int) -> Rows | None:
        """The masks for an operator that sees num_rows rows. None: every row may be remapped, none is padding and none
        verifies a draft (CPU only: what a CUDA graph records must not depend on the step). A step's layers share them:
        three slices with swept caches cost as much as a decision."""
        if num_rows not in self._masks:
            self._masks[num_rows] = self._views(num_rows)
        return self._masks[num_rows]

    def _views(self, num_rows: int) -> Rows | None:
        told = {"remap"}
        if self.always or num_rows != self.num_rows:
            told.add("valid")
        if self.mixed or self.always:
            told.add("price")
        if self.drafted or (self.always and self.speculates):
            told |= {"request", "depth", "chance"}
        if told == {"remap"} and self.num_decode_rows == num_rows > 1:
            return None
        return Rows(**{name: getattr(self, name)[:num_rows] for name in told})

    def tiers(self) -> dict[float, int]:
        """Price -> the rows of the step that ask it, of those that may be remapped."""
        prices, counts = np.unique(self.asked_T, return_counts=True)
        return dict(zip(prices.tolist(), counts.tolist(), strict=True))

    def _mask(self, rows_T: np.ndarray) -> torch.Tensor:
        mask = torch.zeros(len(self.valid), dtype=torch.bool)
        mask[: len(rows_T)] = torch.from_numpy(rows_T)
        return mask.to(self.valid.device)

    def _write(self, **parts: np.ndarray) -> None:
        """Each into the buffer of its name, from its start; the rest of it becomes 0."""
        for name, part in parts.items():
            buffer: torch.Tensor = getattr(self, name)
            if buffer.device.type == "cpu":
                here = buffer.numpy()  # the same memory
                here[: len(part)], here[len(part) :] = part, 0
                continue
            host = torch.zeros(len(buffer), dtype=buffer.dtype, pin_memory=True)
            host.numpy()[: len(part)] = part
            buffer.copy_(host, non_blocking=True)


def decoding(
    past_prompt_R: np.ndarray, scheduled_R: np.ndarray, drafts_R: np.ndarray | None, verify: bool | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(may_R, verify_R), bool: whose rows may be remapped unless its wish is another, and who verifies a draft. The
    arguments are those of `StepRows.fill`, and `Asked.verify`."""
    verify_R = np.zeros_like(past_prompt_R)
    if drafts_R is not None:
        verify_R = past_prompt_R & (drafts_R > 0) & (scheduled_R == 1 + drafts_R)
    return (past_prompt_R & (scheduled_R == 1)) | (verify_R & verify), verify_R


def _places(scheduled_R: np.ndarray, verify_R: np.ndarray, chances: np.ndarray) -> dict[str, np.ndarray]:
    """Of every row: the number of its request, its depth in the draft (0 where it is in none), its chance."""
    request_T = np.repeat(np.arange(len(scheduled_R)), scheduled_R)
    start_R = scheduled_R.cumsum() - scheduled_R
    depth_T = np.where(verify_R[request_T], np.arange(len(request_T)) - start_R[request_T], 0)
    return {"request": request_T, "depth": depth_T, "chance": chances[depth_T.clip(max=len(chances) - 1)]}
