"""Which rows of a forward may be remapped: by its shape, what the cache holds of each sequence, and the mask."""

import pytest
import torch

from lynx_moe.engines.shared.metrics import KINDS, Kind
from lynx_moe.engines.transformers.counters import STEPS, StepCounters
from lynx_moe.engines.transformers.rows import given, of_forward
from lynx_moe.routing import Rows

ALL = [1, 1, 1]
# What each of three sequences holds: (cached tokens of it, is its newest token real?) -> a mask of 4 cached and 1 new.
MASK = [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 0]]


def rows(phase, length=1, past=0, mask=None, ended=None, **more):
    mask, ended = (None if x is None else torch.tensor(x) for x in (mask, ended))
    return of_forward(phase, (3, length), past, mask, ended_B=ended, **more)


def remappable(step):
    """1 for every row that is valid and may be remapped."""
    every = torch.ones(step.num_rows, dtype=torch.bool)
    valid, remap = (every if mask is None else mask for mask in (step.valid, step.remap))
    return (valid & remap & step.acts).int().tolist()


@pytest.mark.parametrize("static", [False, True])
def test_one_new_token_beside_a_cache_is_a_decode_row(static):
    cached = torch.tensor(4) if static else 4
    assert remappable(rows("decode", past=cached)) == ALL
    assert remappable(rows("prefill", past=cached)) == [0, 0, 0]
    assert remappable(rows("all", past=cached)) == ALL
    empty = torch.tensor(0) if static else 0  # a prompt of one token
    assert remappable(rows("decode", past=empty)) == [0, 0, 0]
    assert remappable(rows("prefill", past=empty)) == ALL
    assert remappable(rows("decode", past=cached, is_prompt=True)) == [0, 0, 0]  # the last chunk of a prompt
    assert remappable(rows("prefill", past=cached, is_prompt=True)) == ALL


@pytest.mark.parametrize("past", [0, 4, torch.tensor(4)])
def test_several_new_tokens_are_prefill_rows(past):
    assert remappable(rows("decode", length=2, past=past)) == [0] * 6
    assert not rows("decode", length=2, past=past).acts
    assert remappable(rows("prefill", length=2, past=past)) == [1] * 6
    assert remappable(rows("all", length=2, past=past)) == [1] * 6


@pytest.mark.parametrize("past", [4, torch.tensor(4)])
def test_phases_are_told_apart_per_sequence(past):
    step = rows("decode", past=past, mask=MASK)
    assert step.valid.tolist() == [True, True, False]
    assert step.remap.tolist() == [True, False, True]  # the second begins with this token
    assert remappable(step) == [1, 0, 0]
    assert remappable(rows("prefill", past=past, mask=MASK)) == [0, 1, 0]
    assert remappable(rows("all", past=past, mask=MASK)) == [1, 1, 0]


def test_left_padding_does_not_count():
    mask = [[0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert rows("decode", length=3, mask=mask).valid.tolist() == [False, False, True, False, True, True, *[True] * 3]


def test_sequences_that_have_ended_do_not_count():
    assert rows("decode", past=4, ended=[False, True, False]).valid.tolist() == [True, False, True]
    step = rows("decode", past=4, mask=MASK, ended=[True, False, False])
    assert step.valid.tolist() == [False, True, False]


@pytest.mark.parametrize("mask", [torch.ones(3, 1, 1, 5), {"full_attention": None}, torch.ones(2, 5)])
def test_a_mask_that_does_not_tell_padding_is_refused(mask):
    with pytest.raises(ValueError, match=r"does not say which tokens are padding.*\[3, cached \+ new tokens\]"):
        of_forward("decode", (3, 1), 4, mask)


def test_a_mask_without_the_cached_tokens_is_refused():
    with pytest.raises(ValueError, match="has 1 columns, but there are 4 cached and 1 new"):
        rows("decode", past=4, mask=[[1], [1], [1]])


@pytest.mark.parametrize("mask", [torch.ones(2, dtype=torch.bool), torch.ones(3)])
def test_masks_of_the_user_must_fit_the_forward(mask):
    with pytest.raises(ValueError, match=r"run\.rows: remap is .* needs torch\.bool \[3\]"):
        given(Rows(remap=mask), 3)


def test_what_loads_cost_is_of_a_layer_and_no_row_s():
    with pytest.raises(ValueError, match=r"run\.rows: load_cost_E is of one layer's experts, .*; leave it out"):
        given(Rows(load_cost_E=torch.ones(8)), 3)


@pytest.mark.parametrize(
    ("step", "kind", "counts"),
    [
        (rows("decode", length=2), Kind.PREFILL, None),
        (rows("decode", past=4), Kind.DECODE, [3, 3]),
        (rows("decode", past=4, mask=MASK), Kind.MIXED, [2, 1]),
        (rows("decode", past=4, ended=[True, False, True]), Kind.SINGLE, [1, 1]),
        (rows("decode", past=4, ended=[True, False, False]), Kind.DECODE, [2, 2]),
        (rows("decode", past=4, ended=[True, True, True]), Kind.PREFILL, None),
    ],
)
@pytest.mark.parametrize("acts_alone", [False, True])
def test_steps_are_counted_by_what_a_policy_could_do(acts_alone, step, kind, counts):
    counters = StepCounters(1, torch.device("cpu"), acts_alone=acts_alone)
    counters.begin_step(step)
    counters.begin_step(step)
    assert dict(zip(STEPS, counters.steps.tolist(), strict=True)) == {k: 2 * (k is kind) for k in STEPS}
    columns = [Kind(name) for name in KINDS]
    acts = kind in columns and (acts_alone or kind is not Kind.SINGLE)
    expected = [[2 * count for count in counts] if acts and column is kind else [0, 0] for column in columns]
    assert counters.rows.tolist() == expected
    assert counters.kind.flatten().tolist() == [int(acts and column is kind) for column in columns]
    counters.reset()
    assert not counters.steps.any()
    assert not counters.rows.any()
