"""Which rows of a step count as decode rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.vllm.step.rows import StepRows, from_v1_runner, from_v2_batch


def filled(past_prompt: list[bool], scheduled: list[int]) -> StepRows:
    rows = StepRows(32, torch.device("cpu"))
    rows.remap[:] = True  # whatever the step before left behind
    rows.fill(np.array(past_prompt), np.array(scheduled))
    return rows


@pytest.mark.parametrize(
    ("past_prompt", "scheduled", "kind", "remap"),
    [
        ([True, True], [1, 1], Kind.DECODE, [1, 1]),
        ([True], [1], Kind.SINGLE, [1]),
        ([False], [3], Kind.PREFILL, [0, 0, 0]),
        ([False], [1], Kind.PREFILL, [0]),  # a prompt of one token, or the last token of a prompt
        ([True, False, True], [1, 2, 1], Kind.MIXED, [1, 0, 0, 1]),
        ([True, False], [1, 1], Kind.MIXED, [1, 0]),
        ([True, True], [4, 1], Kind.MIXED, [0, 0, 0, 0, 1]),  # the first was preempted and computes again in bulk
        ([True], [4], Kind.PREFILL, [0, 0, 0, 0]),
    ],
)
def test_a_row_is_remapped_iff_its_request_decodes_one_token(past_prompt, scheduled, kind, remap):
    rows = filled(past_prompt, scheduled)
    assert rows.kind is kind
    assert (rows.num_rows, rows.num_decode_rows) == (len(remap), sum(remap))
    assert rows.remap.tolist() == [bool(r) for r in remap] + [False] * (32 - len(remap))
    assert rows.valid.tolist() == [True] * len(remap) + [False] * (32 - len(remap))


def test_masks_cover_padding_and_leave_out_what_is_not_needed():
    decode = filled([True, True], [1, 1])
    assert decode.masks(2) is None
    padded = decode.masks(4)
    assert padded.valid.tolist() == [True, True, False, False]
    assert padded.remap.tolist() == [True, True, False, False]
    mixed = filled([True, False], [1, 2]).masks(3)
    assert mixed.valid is None
    assert mixed.remap.tolist() == [True, False, False]


def test_a_dummy_run_remaps_nothing():
    rows = filled([True, True], [1, 1])
    rows.idle()
    assert rows.kind is Kind.IDLE
    assert not rows.remap.any()
    assert rows.valid.all()


def test_the_two_runners_tell_the_same_about_the_same_requests():
    computed, prompt, scheduled = np.array([9, 4, 0, 99]), np.array([9, 5, 7, 1]), np.array([1, 1, 7])
    batch = SimpleNamespace(num_reqs=3, num_computed_tokens_cpu=computed, num_prompt_tokens=prompt)
    v1 = from_v1_runner(SimpleNamespace(input_batch=batch), scheduled)
    v2 = from_v2_batch(SimpleNamespace(num_reqs=3, is_prefilling_np=computed < prompt, num_scheduled_tokens=scheduled))
    assert [a.tolist() for a in v1] == [a.tolist() for a in v2] == [[True, False, False], [1, 1, 7]]
