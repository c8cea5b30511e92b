"""The experiments of a profile as policies: who is denied what, and that nobody else is touched."""

import pytest
import torch

from lynx_moe.lab.profile.measures.denials import Denial, DenyExpert, DenyHalf, DenyRank, Forced
from lynx_moe.routing import RouterSpec, Rows, select

ROWS, EXPERTS, TOP_K = 37, 17, 4
SPECS = {
    "softmax": RouterSpec(num_experts=EXPERTS, top_k=TOP_K),
    "raw softmax": RouterSpec(num_experts=EXPERTS, top_k=TOP_K, renormalize=False, scale=2.5),
    "biased sigmoid": RouterSpec(
        num_experts=EXPERTS, top_k=TOP_K, scoring="sigmoid", bias=torch.linspace(0, 0.2, EXPERTS)
    ),
    "groups": RouterSpec(num_experts=18, top_k=TOP_K, groups=(3, 2)),
}
walk = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def logits(spec: RouterSpec) -> torch.Tensor:
    return torch.randn(ROWS, spec.num_experts, generator=torch.Generator().manual_seed(5))


@walk
@pytest.mark.parametrize("rank", range(TOP_K))
def test_a_denied_rank_goes_and_only_the_next_best_comes(spec: RouterSpec, rank: int) -> None:
    own, final = select(logits(spec), spec), DenyRank(rank=rank).route(logits(spec), spec)
    wider = RouterSpec(**{**vars(spec), "top_k": TOP_K + 1})
    following = select(logits(spec), wider).ids
    for row in range(ROWS):
        expected = [expert for place, expert in enumerate(following[row].tolist()) if place != rank]
        assert final.ids[row].tolist() == expected
    if spec.scoring == "softmax":
        torch.testing.assert_close(final.weights.sum(-1), own.weights.sum(-1))


@walk
def test_a_denied_expert_is_used_by_nobody_and_others_keep_their_routing(spec: RouterSpec) -> None:
    own, final = select(logits(spec), spec), DenyExpert(expert=6).route(logits(spec), spec)
    had = (own.ids == 6).any(-1)
    assert 0 < had.sum() < ROWS
    assert not (final.ids == 6).any()
    assert torch.equal(final.ids[~had], own.ids[~had])
    assert torch.equal(final.weights[~had], own.weights[~had])


@walk
def test_the_random_half_is_drawn_by_the_row_alone(spec: RouterSpec) -> None:
    policy, given = DenyHalf(), logits(spec)
    own, final = select(given, spec), policy.route(given, spec)
    again = policy.route(given.flip(0)[:7], spec)
    assert torch.equal(again.ids, final.ids.flip(0)[:7])
    assert (final.ids.sort(-1).values.diff(dim=-1) > 0).all()
    kept = (final.ids[:, :, None] == own.ids[:, None, :]).any(1).float().mean(0)  # by rank
    assert (kept > 0.2).all()
    assert (kept < 0.8).all()


def test_a_denial_may_load_more_than_the_model_and_acts_on_one_row_but_on_no_other_phase() -> None:
    spec, given = SPECS["softmax"], logits(SPECS["softmax"])
    alike = given[:1].expand(3, -1) + torch.tensor([0.0, 1e-3, 2e-3])[:, None] * given[1]
    for rows in (given[:1], alike):
        own = select(rows, spec)
        assert not torch.equal(DenyRank(rank=0).route(rows, spec).ids, own.ids)
    remap = torch.arange(ROWS) % 2 == 0
    own, final = select(given, spec), DenyRank(rank=0).route(given, spec, Rows(remap=remap))
    assert torch.equal(final.ids[~remap], own.ids[~remap])
    assert (final.ids[remap] != own.ids[remap]).any(-1).all()


def test_no_expert_to_spare_is_refused() -> None:
    spec = RouterSpec(num_experts=4, top_k=4)
    for policy in (DenyRank(rank=0), DenyExpert(expert=0), DenyHalf()):
        assert isinstance(policy, Denial)
        with pytest.raises(ValueError, match="none can be denied"):
            policy.check(spec)


@walk
@pytest.mark.parametrize("wanted", [4, 5, 11, 17])
def test_forced_steps_load_exactly_what_is_asked(spec: RouterSpec, wanted: int) -> None:
    ids = Forced(num_distinct=wanted).route(logits(spec), spec).ids
    assert ids.unique().numel() == wanted
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()
    with pytest.raises(ValueError, match="loads 4 to"):
        Forced(num_distinct=3).check(spec)
