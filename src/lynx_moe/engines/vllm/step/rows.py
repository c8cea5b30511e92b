"""The requests of a step, from vLLM's scheduler and model runners: what `StepRows.fill` asks for.

Shapes: R requests of a step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_moe.engines.shared.step.requests import Requests


def take_up(requests: Requests, scheduler_output: Any) -> None:
    """What the scheduler says of finished requests, and of new ones and the next parts of streams that go on."""
    requests.end(scheduler_output.finished_req_ids)
    for new in scheduler_output.scheduled_new_reqs:
        requests.begin(new.req_id, new.sampling_params)


def drafts_of(scheduler_output: Any, req_ids: Sequence[str]) -> np.ndarray:
    """int [R]: how many drafted tokens each of these requests verifies in the step."""
    drafts = getattr(scheduler_output, "scheduled_spec_decode_tokens", None)
    if not drafts:
        return np.zeros(len(req_ids), dtype=np.int64)
    return np.array([len(drafts.get(name, ())) for name in req_ids], dtype=np.int64)


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
