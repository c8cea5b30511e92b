"""Which rows of a step count as decode rows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.shared.step.rows import EXACT_ROW, Asked, StepRows
from lynx_moe.engines.vllm.step.rows import drafts_of, from_v1_runner, from_v2_batch


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


PAST, SCHEDULED, DRAFTS = [True, True, False, True, True], [4, 1, 3, 3, 5], [3, 0, 0, 2, 0]  # the last computes again


def verifying(asked: Asked, choice: list[int] | None = None, **given: Any) -> StepRows:
    rows = StepRows(32, torch.device("cpu"), speculates=True, **given)
    numbers = None if choice is None else np.array(choice)
    chances = np.array([1, 0.5, 0.25], dtype=np.float32)
    rows.fill(np.array(PAST), np.array(SCHEDULED), numbers, asked, np.array(DRAFTS), chances)
    return rows


def test_rows_that_verify_are_remapped_where_that_is_asked_for_and_know_their_place():
    rows = verifying(Asked(verify=True))
    assert rows.remap.tolist()[:16] == [True] * 5 + [False] * 3 + [True] * 3 + [False] * 5
    assert (rows.kind, rows.num_decode_rows) == (Kind.MIXED, 8)
    assert (rows.num_verify_rows, rows.num_verify_remappable) == (7, 7)
    masks = rows.masks(16)
    assert masks.request.tolist() == [0] * 4 + [1] + [2] * 3 + [3] * 3 + [4] * 5
    assert masks.depth.tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert masks.chance.tolist() == [1, 0.5, 0.25, 0.25, 1, 1, 1, 1, 1, 0.5, 0.25, 1, 1, 1, 1, 1]


def test_rows_that_verify_exactly_donate_and_nothing_is_told_of_their_draft():
    rows = verifying(Asked())
    assert rows.remap.tolist()[:16] == [False] * 4 + [True] + [False] * 11
    assert (rows.num_verify_rows, rows.num_verify_remappable) == (7, 0)
    assert rows.masks(16).request is rows.masks(16).chance is None
    always = verifying(Asked(), graphs=True).masks(16)  # what a graph records must not depend on the step
    assert always.depth.tolist()[:4] == [0, 1, 2, 3]


def test_each_request_s_wish_decides_and_exact_ones_stay_exact():
    one = verifying(Asked(verify=np.array([False, False, False, True, False])))
    assert one.remap.tolist()[:16] == [False] * 4 + [True] + [False] * 3 + [True] * 3 + [False] * 5
    exact = verifying(Asked(verify=True), [EXACT_ROW, 0, 0, 0, 0])
    assert exact.remap.tolist()[:4] == [False] * 4
    assert (exact.num_exact_rows, exact.num_verify_rows, exact.num_verify_remappable) == (4, 7, 3)


def test_a_draft_alone_is_a_batch_of_its_rows():
    rows = StepRows(32, torch.device("cpu"), speculates=True)
    one = np.ones(1, dtype=int)
    rows.fill(one > 0, 4 * one, None, Asked(verify=True), 3 * one, np.array([1, 0.5], dtype=np.float32))
    assert (rows.kind, rows.num_decode_rows) == (Kind.DECODE, 4)
    assert rows.masks(4).chance.tolist() == [1, 0.5, 0.5, 0.5]
    rows.fill(one > 0, one, None, Asked(verify=True), 0 * one)
    assert rows.kind is Kind.SINGLE
    assert rows.masks(1).request is None


def test_drafts_are_the_scheduler_s_word():
    output = SimpleNamespace(scheduled_spec_decode_tokens={"b": [7, 8], "c": [-1]})
    assert drafts_of(output, ["a", "b", "c"]).tolist() == [0, 2, 1]
    assert drafts_of(SimpleNamespace(), ["a"]).tolist() == [0]
