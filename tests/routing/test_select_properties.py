"""What holds for every routing decision: random specs, logits (ties, zeros of both signs) and kept sets."""

from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lynx_moe.routing import RouterSpec, Routing, distinct, loaded, order_key, preference, reroute, scores, select

SUM = {"rtol": 1e-5, "atol": 0.0}  # a sum of up to 20 weights: 20 roundings of 2**-24, and their own
many = settings(deadline=None, max_examples=200)


class Step(NamedTuple):
    spec: RouterSpec
    logits_TE: Tensor
    keep_E: Tensor


@st.composite
def steps(draw):
    n_group, size = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    num_experts, topk_group = n_group * size, draw(st.integers(1, n_group))
    torch.manual_seed(draw(st.integers(0, 2**32)))
    spec = RouterSpec(
        num_experts=num_experts,
        top_k=draw(st.integers(1, topk_group * size)),
        scoring=draw(st.sampled_from(["softmax", "sigmoid", "sqrtsoftplus"])),
        renormalize=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 2.5])),
        bias=draw(st.sampled_from([None, torch.randn(num_experts), torch.zeros(num_experts)])),
        groups=draw(st.sampled_from([None, (n_group, topk_group)])),
    )
    logits_TE = torch.randn(draw(st.integers(1, 7)), num_experts) * 3
    logits_TE = logits_TE.round() if draw(st.booleans()) else logits_TE  # rounded: ties and both zeros
    keep_E = torch.rand(num_experts) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    return Step(spec, logits_TE.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), keep_E)


def by_sorting(spec, logits_E, keep_E):
    """One row's experts, the slow way (kept, then best, then lowest id), and all that its groups allow."""
    choice_E = logits_E.float() if spec.bias is None else scores(logits_E, spec) + spec.bias
    allowed = range(spec.num_experts)
    if spec.groups is not None:
        n_group, topk_group = spec.groups
        best = choice_E.reshape(n_group, -1).sort(descending=True).values
        value_G = best[:, 0] if spec.bias is None else best[:, 0] + best[:, 1]
        groups = sorted(range(n_group), key=lambda g: (-value_G[g].item(), g))[:topk_group]
        allowed = [e for e in allowed if e // (spec.num_experts // n_group) in groups]
    order = sorted(allowed, key=lambda e: (not keep_E[e], -choice_E[e].item(), e))
    return order[: spec.top_k], set(allowed)


def assert_weights_rule(spec, logits_TE, routing, mass_T):
    """mass_T: what the weights of a softmax that is not renormalised sum to."""
    total_T, score_TK = routing.weights.sum(-1), scores(logits_TE, spec).gather(-1, routing.ids)
    assert routing.weights.dtype == torch.float32
    if spec.renormalize:
        torch.testing.assert_close(total_T, torch.full_like(total_T, spec.scale), **SUM)
    elif spec.scoring == "softmax":
        torch.testing.assert_close(total_T, mass_T, **SUM)
    else:
        assert torch.equal(routing.weights, score_TK * spec.scale)
    torch.testing.assert_close(routing.weights / total_T[:, None], score_TK / score_TK.sum(-1, keepdim=True), **SUM)


VALUES = st.sampled_from([0.0, -0.0, float("-inf"), float("inf"), 1.0, -1.0, 2.0**-149]) | st.floats(
    width=32, allow_nan=False
)


@many
@given(st.lists(st.tuples(VALUES, st.integers(0, 2)), min_size=1, max_size=12), st.booleans(), st.booleans())
def test_order_key_is_tier_then_value_then_lowest_id(experts, half, tiered):
    value_E = torch.tensor([value for value, _ in experts]).to(torch.bfloat16 if half else torch.float32)
    tier_E = torch.tensor([tier for _, tier in experts]) * tiered
    key_E = order_key(value_E[None], tier_E[None] if tiered else None)[0]
    expected = sorted(range(len(experts)), key=lambda e: (-tier_E[e].item(), -value_E[e].item(), e))
    assert key_E.argsort(descending=True).tolist() == expected
    assert len(set(key_E.tolist())) == len(experts)


@many
@given(steps())
def test_select_is_the_sorted_top_k_with_the_models_weights(step):
    spec, logits_TE, _ = step
    routing = select(logits_TE, spec)
    everything = torch.ones(spec.num_experts, dtype=torch.bool)
    assert routing.ids.tolist() == [by_sorting(spec, row, everything)[0] for row in logits_TE]
    assert all(len(set(ids)) == spec.top_k for ids in routing.ids.tolist())
    mass_T = scores(logits_TE, spec).gather(-1, routing.ids).sum(-1) * spec.scale
    assert_weights_rule(spec, logits_TE, routing, mass_T)


@many
@given(steps())
def test_reroute_keeps_to_the_kept_and_to_the_rows_groups(step):
    spec, logits_TE, keep_E = step
    own = select(logits_TE, spec)
    routing = reroute(logits_TE, keep_E, spec, own)
    stays_T = (routing.ids.sort(-1).values == own.ids.sort(-1).values).all(-1)
    assert stays_T[keep_E[own.ids].all(-1)].all()
    assert torch.equal(routing.ids[stays_T], own.ids[stays_T])
    assert torch.equal(routing.weights[stays_T], own.weights[stays_T])
    for row, ids, stays in zip(logits_TE, routing.ids.tolist(), stays_T.tolist(), strict=True):
        expected, allowed = by_sorting(spec, row, keep_E)
        assert ids == expected or (stays and set(ids) == set(expected))  # what stays keeps the model's own order
        assert set(ids) <= allowed
        kept = {e for e in allowed if keep_E[e]}
        assert set(ids) <= kept or kept <= set(ids)
    assert_weights_rule(spec, logits_TE, routing, own.weights.sum(-1))
    again = reroute(logits_TE, keep_E, spec, own, preference(logits_TE, spec))
    assert torch.equal(again.ids, routing.ids)
    assert torch.equal(again.weights, routing.weights)


def test_reroute_leaves_a_tie_as_the_engine_broke_it():
    logits_TE, spec = torch.tensor([[2.0, 1.0, 1.0, 0.0]]), RouterSpec(num_experts=4, top_k=2)
    own = Routing(torch.tensor([[0, 2]]), torch.tensor([[0.7, 0.3]]))
    routing = reroute(logits_TE, torch.tensor([True, True, True, False]), spec, own)
    assert routing.ids.tolist() == [[0, 2]]
    assert torch.equal(routing.weights, own.weights)


@many
@given(steps())
def test_reroute_into_everything_is_the_own_routing_bit_for_bit(step):
    own = select(step.logits_TE, step.spec)
    routing = reroute(step.logits_TE, torch.ones_like(step.keep_E), step.spec, own)
    assert torch.equal(routing.ids, own.ids)
    assert torch.equal(routing.weights, own.weights)


@many
@given(steps(), st.data())
def test_distinct_counts_what_the_valid_rows_load(step, data):
    ids_TK, num_experts = select(step.logits_TE, step.spec).ids, step.spec.num_experts
    valid = data.draw(st.lists(st.booleans(), min_size=len(ids_TK), max_size=len(ids_TK)))
    for mask in (valid, None):
        union = {e for ids, ok in zip(ids_TK.tolist(), mask or [True] * len(valid), strict=True) if ok for e in ids}
        mask_T = None if mask is None else torch.tensor(mask)
        assert set(loaded(ids_TK, num_experts, mask_T).nonzero().flatten().tolist()) == union
        assert distinct(ids_TK, num_experts, mask_T).item() == len(union)
