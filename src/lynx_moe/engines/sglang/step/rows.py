"""The requests of a step, from SGLang's forward batch: what `StepRows.fill` asks for.

A row may be remapped where SGLang itself decodes: in DECODE every row, in MIXED those of requests that are past their
prompt. EXTEND is prompts, chunks of them and what a retracted request computes again: these keep the model's routing.
TARGET_VERIFY has equally many rows for each request: its next token, and after it the drafted ones, in a chain or a
tree. Where it is one row, nothing was drafted, and the request decodes.

Shapes: R requests of a step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Batch(NamedTuple):
    """As `StepRows.fill` takes them: bool [R], int64 [R], int64 [R]."""

    past_prompt_R: np.ndarray
    scheduled_R: np.ndarray
    drafts_R: np.ndarray


def of(batch: Any, prompts_R: Sequence[int]) -> Batch | None:
    """The requests of a forward batch; prompts_R: the lengths of the prompts. None: it has no rows of requests, as in
    warm-ups and while a graph is recorded, or whose rows are whose is not known."""
    mode, count = batch.forward_mode.name, len(prompts_R)
    if mode == "IDLE" or not count:
        return None
    none_R = np.zeros(count, dtype=np.int64)
    if mode == "DECODE":
        return Batch(none_R == 0, none_R + 1, none_R)
    if mode == "TARGET_VERIFY":
        each, left = divmod(len(batch.input_ids), count)
        return None if left else Batch(none_R == 0, none_R + each, none_R + each - 1)
    if batch.extend_seq_lens_cpu is None:
        return None
    scheduled_R = np.array(batch.extend_seq_lens_cpu, dtype=np.int64)
    if mode != "MIXED":
        return Batch(none_R > 0, scheduled_R, none_R)
    cached_R = np.array(batch.extend_prefix_lens_cpu, dtype=np.int64)
    return Batch((cached_R >= np.array(prompts_R)) & (scheduled_R == 1), scheduled_R, none_R)
