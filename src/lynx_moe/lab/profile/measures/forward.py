"""What a reassignment does to the tokens that follow, from one forward per batch.

An experiment looks at each row alone, so decoding a known continuation token by token is one causal forward over it, in
which the rows that are reassigned are named (`run.rows`). B sequences of L tokens, S of which are decoded, V entries of
the vocabulary, T = B * L rows. Sequences are padded on the right, which nothing attends to.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lynx_moe.control.loss import compare
from lynx_moe.engines.transformers import Run
from lynx_moe.lab.fidelity.lockstep import Effect
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.routing import Rows

PHASES = ("decode", "prefill")


class Layout(NamedTuple):
    """ids_BL, mask_BL (1: a token), begin_B (tokens of prefix), next_BS (the token that each decoded one predicts)."""

    ids_BL: Tensor
    mask_BL: Tensor
    begin_B: Tensor
    next_BS: Tensor

    def decoded(self) -> Tensor:
        """int64 [B, S]: the columns of the tokens that decoding feeds."""
        return self.begin_B[:, None] + torch.arange(self.next_BS.shape[1], device=self.begin_B.device)

    def rows(self, phase: str) -> Rows:
        """The rows of one phase may be remapped. Raises ValueError for an unknown one."""
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r} is unknown; allowed: {', '.join(PHASES)}")
        prefix_BL = torch.arange(self.ids_BL.shape[1], device=self.begin_B.device) < self.begin_B[:, None]
        valid_BL = self.mask_BL.bool()
        remap_BL = valid_BL & (prefix_BL if phase == "prefill" else ~prefix_BL)
        return Rows(valid=valid_BL.flatten(), remap=remap_BL.flatten())


def lay_out(batch: Batch, device: torch.device) -> Layout:
    """The same tokens that `lockstep.decode` feeds: the prefix, then S tokens of the continuation."""
    fed = [member.prefix + member.rest[: batch.num_steps] for member in batch.members]
    width = max(map(len, fed))
    ids = [list(row) + [0] * (width - len(row)) for row in fed]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in fed]
    begin = [len(member.prefix) for member in batch.members]
    following = [member.rest[1 : batch.num_steps + 1] for member in batch.members]
    return Layout(*(torch.tensor(part, device=device) for part in (ids, mask, begin, following)))


@torch.inference_mode()
def log_probabilities(model: Any, given: Layout) -> Tensor:
    """float32 [B, S, V] after each decoded token."""
    columns_BS = given.decoded()
    logits = model(given.ids_BL, attention_mask=given.mask_BL, use_cache=False).logits
    rows_B1 = torch.arange(len(columns_BS), device=columns_BS.device)[:, None]
    found: Tensor = logits[rows_B1, columns_BS].float().log_softmax(-1)
    return found


def effects(model: Any, batches: Iterable[Batch], runs: Sequence[Run], phase: str) -> Iterator[list[Effect]]:
    """Per batch, the effect of each run (made by `apply`, not installed) on the decoded tokens, if it acts on the rows
    of `phase`: "decode", or "prefill", whose damage is what the prefix hands on to exact decoding."""
    device = next(model.parameters()).device
    for batch in batches:
        given = lay_out(batch, device)
        exact_BSV = log_probabilities(model, given)
        found = []
        for run in runs:
            run.rows = given.rows(phase)
            with run:
                parts = compare(exact_BSV, log_probabilities(model, given), given.next_BS)
            found.append(Effect(*(part.T for part in parts)))
        yield found
