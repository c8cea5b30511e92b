"""The requests of a step, from SGLang's forward batch: what `StepRows.fill` asks for.

A row may be remapped where SGLang itself decodes: in DECODE every row, in MIXED those of requests that are past their
prompt. EXTEND is prompts, chunks of them and what a retracted request computes again; TARGET_VERIFY verifies drafts.
All these keep the model's routing.

Shapes: R requests of a step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]  # past_prompt_R, scheduled_R


def of(batch: Any, prompts_R: Sequence[int]) -> Batch | None:
    """(past_prompt_R, scheduled_R) of a forward batch; prompts_R: the lengths of the prompts. None: it has no rows of
    requests, as in warm-ups and while a graph is recorded."""
    mode = batch.forward_mode.name
    if mode == "IDLE" or not prompts_R:
        return None
    count = len(prompts_R)
    if mode == "DECODE":
        return np.ones(count, dtype=bool), np.ones(count, dtype=np.int64)
    lengths = batch.extend_seq_lens_cpu
    if lengths is None:  # such as TARGET_VERIFY: as many rows for each
        each = len(batch.input_ids) // count
        return np.zeros(count, dtype=bool), np.full(count, each, dtype=np.int64)
    scheduled_R = np.array(lengths, dtype=np.int64)
    if mode != "MIXED":
        return np.zeros(count, dtype=bool), scheduled_R
    cached_R = np.array(batch.extend_prefix_lens_cpu, dtype=np.int64)
    return (cached_R >= np.array(prompts_R)) & (scheduled_R == 1), scheduled_R
