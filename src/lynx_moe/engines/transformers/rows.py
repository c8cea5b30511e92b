"""Which rows of a forward may be remapped: from the shapes, the cache and the attention mask.

A row (token) is a decode row iff it is the only new token of its sequence and the cache holds a token of that sequence
already. The rows of longer forwards are prefill rows: prompts, chunks of them, and drafted tokens that are verified.

Shapes: B sequences, L new tokens of each, S columns of the mask (cached and new), T = B * L rows, sequence by sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lynx_moe.routing import Rows

PHASES = ("decode", "prefill", "all")
DTYPES = {  # of the fields of `Rows`
    "valid": torch.bool,
    "remap": torch.bool,
    "price": torch.float32,
    "request": torch.int64,
    "depth": torch.int64,
    "chance": torch.float32,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRows:
    """The rows of one forward. `acts` is False where no row may be remapped, known without asking the device; the rest
    is as in `Rows`."""

    num_rows: int
    acts: bool
    valid: Tensor | None = None
    remap: Tensor | None = None
    price: Tensor | None = None
    request: Tensor | None = None
    depth: Tensor | None = None
    chance: Tensor | None = None

    @property
    def masks(self) -> Rows | None:
        given = {name: getattr(self, name) for name in DTYPES}
        return None if all(part is None for part in given.values()) else Rows(**given)


def of_forward(
    phase: str,
    size: Sequence[int],
    past: int | Tensor,
    mask_BS: Tensor | None,
    *,
    ended_B: Tensor | None = None,
    is_prompt: bool = False,
) -> StepRows:
    """`size`: (B, L). `past`: tokens in the cache, a tensor of one number in a static one. mask_BS: the attention mask,
    None: no padding. ended_B: sequences that have ended and are only carried along. is_prompt: known to be a prefill.

    Raises ValueError for a mask that does not say which tokens are padding.
    """
    batch, length = size
    _check_mask(mask_BS, batch, length, past)
    decodes = length == 1 and not is_prompt and (isinstance(past, Tensor) or past > 0)
    begun_B = (past > 0).expand(batch) if isinstance(past, Tensor) else None
    valid_BL = None
    if mask_BS is not None:
        place_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
        new_L = torch.arange(length, device=mask_BS.device) + past
        valid_BL = mask_BS.index_select(1, new_L).bool()
        begun_B = (mask_BS.bool() & (place_S < past)).any(1)
    if ended_B is not None:
        valid_BL = ~ended_B[:, None] if valid_BL is None else valid_BL & ~ended_B[:, None]
    valid_T = None if valid_BL is None else valid_BL.expand(batch, length).reshape(-1)
    if phase == "all":
        remap_T, acts = None, True
    elif not decodes:
        remap_T, acts = None, phase == "prefill"
    elif phase == "decode":
        remap_T, acts = begun_B, True
    else:
        remap_T, acts = None if begun_B is None else ~begun_B, begun_B is not None
    return StepRows(num_rows=batch * length, acts=acts, valid=valid_T, remap=remap_T)


def given(rows: Rows, num_rows: int) -> StepRows:
    """The user's own rows: masks, prices, drafts. Raises ValueError if they are not of this forward."""
    if rows.load_cost_E is not None:
        raise ValueError("run.rows: load_cost_E is of one layer's experts, and rows are of all layers; leave it out")
    parts = {name: getattr(rows, name) for name in DTYPES}
    for name, part_T in parts.items():
        dtype = DTYPES[name]
        if part_T is not None and (part_T.shape != (num_rows,) or part_T.dtype != dtype):
            raise ValueError(
                f"run.rows: {name} is {part_T.dtype} {list(part_T.shape)}, but this forward needs {dtype} "
                f"[{num_rows}] (batch times new tokens, sequence by sequence); set run.rows for every shape, or to None"
            )
    return StepRows(num_rows=num_rows, acts=True, **parts)


def _check_mask(mask_BS: Any, batch: int, length: int, past: int | Tensor) -> None:
    if mask_BS is None:
        return
    if not isinstance(mask_BS, Tensor) or mask_BS.dim() != 2 or len(mask_BS) != batch:
        what = f"shape {tuple(mask_BS.shape)}" if isinstance(mask_BS, Tensor) else type(mask_BS).__name__
        raise ValueError(
            f"attention_mask ({what}) does not say which tokens are padding: pass one number per token, "
            f"[{batch}, cached + new tokens], or say which rows count by run.rows"
        )
    if not isinstance(past, Tensor) and mask_BS.shape[1] < past + length:
        raise ValueError(
            f"attention_mask has {mask_BS.shape[1]} columns, but there are {past} cached and {length} new tokens; "
            f"pass a column for each"
        )
