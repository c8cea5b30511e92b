"""`lynx` on steps small enough to check by hand: groups, bias, favourites, donated experts, open knobs."""

import pytest
import torch

from lynx_moe import RouterSpec, Routing, Rows, make_policy
from lynx_moe.routing import distinct, select


def test_interchangeable_tails_are_shared_and_favourites_stay() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.9, 0.0], [0.0, 9.0, 0.9, 1.0]])
    spec = RouterSpec(num_experts=4, top_k=2)
    assert select(logits, spec).ids.tolist() == [[0, 1], [1, 3]]
    routing = make_policy("lynx:alpha=1,beta=2").route(logits, spec)
    # Row 1's tail (2, 3, 0) lies in its last bin: what row 0 has in a better bin goes first, and 0 is its favourite.
    assert routing.ids.tolist() == [[0, 1], [1, 0]]
    assert torch.allclose(routing.weights.sum(-1), torch.ones(2))


def test_donated_experts_are_free() -> None:
    logits = torch.tensor([[5.0, 4.9, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 4.0, 3.0]])
    spec = RouterSpec(num_experts=5, top_k=2)
    rows = Rows(remap=torch.tensor([False, True]))
    routing = make_policy("lynx:alpha=0.1,beta=1").route(logits, spec, rows)
    assert routing.ids[0].tolist() == [0, 1]
    assert set(routing.ids[1].tolist()) <= {0, 1, 2, 3}
    assert distinct(routing.ids, 5) <= distinct(select(logits, spec).ids, 5)


def test_experts_outside_a_row_s_groups_neither_get_its_vote_nor_its_tokens() -> None:
    # Two groups of two; rows 0 and 1 may use only experts 0 and 1, row 2 only 2 and 3.
    logits = torch.tensor([[3.0, 1.0, 2.9, 0.0], [1.0, 3.0, 0.0, 2.9], [0.0, 0.1, 3.0, 2.0]])
    spec = RouterSpec(num_experts=4, top_k=1, groups=(2, 1))
    for text in ("lynx:alpha=0.1,beta=1", "lynx", "lynx-v1:num_keep=1", "random:num_keep=1"):
        routing = make_policy(text).route(logits, spec)
        assert set(routing.ids[:2].flatten().tolist()) <= {0, 1}
        assert routing.ids[2].item() in (2, 3)


def test_a_bias_moves_the_choice_and_never_the_weights() -> None:
    logits = torch.tensor([[2.0, 1.9, -4.0, -4.0], [2.5, -1.0, -4.0, -4.0]])
    bias = torch.tensor([0.0, 0.5, 0.0, 0.0])
    spec = RouterSpec(num_experts=4, top_k=1, scoring="sigmoid", renormalize=False, scale=2.0, bias=bias)
    assert select(logits, spec).ids.flatten().tolist() == [1, 0]
    # Row 1's biased scores are 0.92 and 0.77, one bin at alpha = 3; row 0's 0.88 and 1.37 are two: expert 1 wins.
    routing = make_policy("lynx:alpha=3,beta=2").route(logits, spec)
    assert routing.ids.flatten().tolist() == [1, 1]
    assert torch.allclose(routing.weights.flatten(), 2 * logits[:, 1].sigmoid())


def test_open_knobs_follow_the_router_s_own_scale() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, spec = torch.randn(16, 64, generator=rng), RouterSpec(num_experts=64, top_k=8)
    small, large = (make_policy("lynx").route(logits * factor, spec) for factor in (0.25, 8.0))
    assert torch.equal(small.ids, large.ids)  # a power of two: exact in floating point
    fixed = [distinct(make_policy("lynx:alpha=3,beta=2").route(logits * f, spec).ids, 64) for f in (0.25, 8.0)]
    assert fixed[0] != fixed[1]


def test_the_open_rule_does_not_hang_on_the_last_bits_of_a_logit() -> None:
    """The median voter's own expert gives the depth of the last bin; it must not lie on that bin's edge."""
    rng, policy, spec = torch.Generator().manual_seed(0), make_policy("lynx"), RouterSpec(num_experts=32, top_k=8)
    for logits in torch.randn(200, 5, 32, generator=rng):
        noisy = logits * (1 + 3e-7 * torch.randn(5, 32, generator=rng))
        for decide in (policy.route, policy.decide):
            assert torch.equal(decide(logits, spec).ids, decide(noisy, spec).ids)


@pytest.mark.parametrize(("num_experts", "top_k", "beta"), [(8, 2, 3), (16, 1, 3), (32, 4, 3), (60, 5, 2), (64, 8, 2)])
def test_open_bins_are_finer_where_a_row_has_few_experts(num_experts: int, top_k: int, beta: int) -> None:
    steps = torch.randn(60, 16, num_experts, generator=torch.Generator().manual_seed(2))
    spec = RouterSpec(num_experts=num_experts, top_k=top_k)
    left_open, given, other = (
        torch.stack([make_policy(text).route(logits, spec).ids for logits in steps])
        for text in ("lynx", f"lynx:beta={beta}", f"lynx:beta={5 - beta}")
    )
    assert torch.equal(left_open, given)
    assert not torch.equal(left_open, other)


def test_pin_top1_keeps_every_favourite() -> None:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 8, generator=rng) * 0.2  # flat: many experts share bin 0
    spec = RouterSpec(num_experts=8, top_k=2)
    own = select(logits, spec)
    lost, pinned = (
        (make_policy(text).route(logits, spec).ids == own.ids[:, :1]).any(-1)
        for text in ("lynx:alpha=0.7,beta=1", "lynx:alpha=0.7,beta=1,pin_top1=true")
    )
    assert not lost.all()
    assert pinned.all()


def test_an_engine_s_own_weights_come_back_for_rows_whose_experts_all_stay() -> None:
    logits = torch.tensor([[9.0, 8.0, 0.0, 0.1], [8.0, 9.0, 0.1, 0.0], [9.0, 0.0, 1.0, 0.5]])
    spec = RouterSpec(num_experts=4, top_k=2)
    own = select(logits, spec)
    marked = Routing(own.ids, own.weights * 1.25)
    routing = make_policy("lynx:alpha=0.5,beta=2").route(logits, spec, None, marked)
    assert torch.equal(routing.weights[:2], marked.weights[:2])
    assert routing.ids[2].tolist() == [0, 1]
