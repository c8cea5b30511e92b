"""What the routing tests share: one CPU thread, no downloads, and the comparison with somebody else's router."""

import os
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from lynx_moe.routing import preference, select

UNIT = 2.0**-24  # relative error of one float32 rounding


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weight_bound(logits_TE, spec):
    """How far two correct float32 evaluations of a router's weights may lie apart, relative.

    A weight is made of products, quotients and sums of *positive* numbers, so relative errors only add up. On each of
    the two sides numerator and denominator hold an exp whose argument, a difference of logits of at most 2 max|logit|,
    was rounded once; there is a sum of E terms, one of K, and fewer than 8 further roundings.
    """
    return 2 * UNIT * (4 * logits_TE.abs().max().item() + spec.num_experts + spec.top_k + 8)


def _assert_selects(logits_TE, spec, weights_TK, ids_TK, ordered=False):
    ours, ids_TK = select(logits_TE, spec), ids_TK.long()
    assert ours.ids.shape == ids_TK.shape == (len(logits_TE), spec.top_k)
    assert torch.equal(ours.ids.sort(-1).values, ids_TK.sort(-1).values)
    assert (ours.ids.sort(-1).values.diff(dim=-1) > 0).all()  # distinct
    assert (preference(logits_TE, spec)[0].gather(1, ours.ids).diff(dim=-1) <= 0).all()  # best first
    assert torch.equal(ours.ids, ids_TK) or not ordered
    mine_TE = torch.zeros(logits_TE.shape).scatter(1, ours.ids, ours.weights)
    theirs_TE = torch.zeros(logits_TE.shape).scatter(1, ids_TK, weights_TK.float())
    torch.testing.assert_close(mine_TE, theirs_TE, rtol=weight_bound(logits_TE, spec), atol=0)


@pytest.fixture
def assert_selects():
    """(logits, spec, weights, ids, ordered): select() gives these experts, in this order if `ordered`, and weights."""
    return _assert_selects


@pytest.fixture
def assert_every_field_counts():
    """(logits, spec, weights, ids): with any one field of the spec wrong, select() gives something else."""

    def check(logits_TE, spec, weights_TK, ids_TK):
        scoring = "sigmoid" if spec.scoring == "softmax" else "softmax"
        wrong = {"scoring": scoring, "renormalize": not spec.renormalize, "scale": spec.scale * 1.01}
        wrong |= {name: None for name in ("bias", "groups", "expert_scale") if getattr(spec, name) is not None}
        for name, value in wrong.items():
            with pytest.raises(AssertionError):
                _assert_selects(logits_TE, replace(spec, **{name: value}), weights_TK, ids_TK)

    return check
