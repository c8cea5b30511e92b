"""per_rank: the kept set over ranks equals its plain transcription, and its fullest rank is never fuller."""

import pytest
import slow
import torch
from cases import BY_SCORES, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_moe.policies import POLICIES, Placement, make_policy
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.published.spread import level
from lynx_moe.routing import RouterSpec, Rows, distinct, loaded, preference, select

SPECS = ["lynx:alpha=0.7,beta=1", "lynx:alpha=3,beta=2,pin_top1=true", "oea:k0=1", "xshare:alpha=0.5,k0=1"]


def step_of(case: Case) -> Step:
    own, voters = select(case.logits, case.spec), case.voters
    free = loaded(own.ids, case.spec.num_experts, case.valid & ~voters)
    logits = case.logits.float().where(voters[:, None], 0.0)
    return Step(logits, case.spec, own, voters, free, *preference(logits, case.spec))


def copies(ranks: list[set[int]]) -> Placement:
    return Placement.fixed(torch.tensor([[rank in one for one in ranks] for rank in range(4)]))


def flags(experts: set[int], num_experts: int) -> torch.Tensor:
    return torch.tensor([e in experts for e in range(num_experts)])


@settings(max_examples=100, deadline=None)
@given(case=cases(sizes_T=(1, 2, 3, 7), sizes_E=(4, 12), schemes=BY_SCORES), data=st.data())
def test_the_spread_set_is_its_transcription(case: Case, data: st.DataObject) -> None:
    num_experts = case.spec.num_experts
    sets = st.sets(st.integers(0, num_experts - 1))
    places = st.sets(st.integers(0, 3), min_size=1, max_size=data.draw(st.integers(1, 3)))
    ranks = data.draw(st.lists(places, min_size=num_experts, max_size=num_experts))
    step, batch = step_of(case), slow.Batch(case, select(case.logits, case.spec))
    pinned = data.draw(sets)
    keep = data.draw(sets) | pinned | batch.free
    got = level(flags(keep, num_experts), flags(pinned, num_experts), step, copies(ranks))
    assert set(got.nonzero().flatten().tolist()) == slow.spread(batch, keep, pinned, ranks)


@pytest.mark.parametrize("text", SPECS)
@settings(max_examples=30, deadline=None)
@given(case=cases(sizes_T=(2, 7, 64), sizes_E=(12, 60, 128)), num_ranks=st.integers(2, 8), seed=st.integers(0, 9))
def test_no_rank_keeps_more_than_the_fullest_without_it(text: str, case: Case, num_ranks: int, seed: int) -> None:
    placement, step = Placement.linear(case.spec.num_experts, num_ranks), step_of(case)
    if seed:  # some experts have copies
        more = torch.rand(placement.here_RE.shape, generator=torch.Generator().manual_seed(seed)) < 0.05
        placement = Placement.fixed(placement.here_RE | more)
    plain_E = make_policy(text).stays(step)
    spread_E = make_policy(f"{text},per_rank=true").for_placement(placement).stays(step)
    assert placement.count(spread_E).max() <= placement.count(plain_E).max()
    assert spread_E.sum() >= plain_E.sum()


@pytest.mark.parametrize("text", [*SPECS, "priced:price=0.1", "priced:num_keep=3"])
@settings(max_examples=20, deadline=None)
@given(case=cases(sizes_T=(2, 7), sizes_E=(12, 60)))
def test_on_one_rank_nothing_changes(text: str, case: Case) -> None:
    plain, per_rank = make_policy(text), make_policy(f"{text},per_rank=true")
    one = per_rank.for_placement(Placement.linear(case.spec.num_experts, 1))
    for policy in (per_rank, one):
        got = policy.decide(case.logits, case.spec, case.rows).ids
        assert torch.equal(got[case.voters], plain.decide(case.logits, case.spec, case.rows).ids[case.voters])


@pytest.mark.parametrize("text", ["lynx:alpha=3,beta=2", "xshare:budget=24", "priced:price=0.1", "priced:num_keep=24"])
def test_the_fullest_rank_loads_less(text: str) -> None:
    """16 rows of a skewed router: what many rows want lies on the first of four ranks."""
    rng, spec = torch.Generator().manual_seed(3), RouterSpec(num_experts=64, top_k=8)
    placement = Placement.linear(64, 4)
    skew = torch.linspace(1.5, 0, 64)
    fullest = {"": 0, ",per_rank=true": 0}
    for _ in range(20):
        logits = torch.randn(16, 64, generator=rng) + skew
        for words in fullest:
            routing = make_policy(text + words).for_placement(placement).decide(logits, spec)
            fullest[words] += int(placement.count(loaded(routing.ids, 64)).max())
    assert fullest[",per_rank=true"] < 0.85 * fullest[""]


def test_oea_fills_emptier_ranks_up() -> None:
    rng, spec = torch.Generator().manual_seed(4), RouterSpec(num_experts=64, top_k=8)
    placement = Placement.linear(64, 4)
    logits = torch.randn(8, 64, generator=rng)
    own = select(logits, spec)
    got = {}
    for text in ("oea:k0=2", "oea:k0=2,per_rank=true"):
        ids = make_policy(text).for_placement(placement).decide(logits, spec, Rows(), own).ids
        same = (ids[:, :, None] == own.ids[:, None, :]).any(-1).float().mean()
        got[text] = same, placement.count(loaded(ids, 64)).max(), distinct(ids, 64)
    (same, fullest, number), (same_spread, fullest_spread, number_spread) = got.values()
    assert same_spread > same
    assert fullest_spread <= fullest
    assert number < number_spread <= distinct(own.ids, 64)


def test_placement_says_who_has_what() -> None:
    assert Placement.linear(7, 3).here_RE.int().argmax(0).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert (Placement.linear(7, 3).here_RE.sum(0) == 1).all()
    assert Placement.linear(7, 3).count(torch.tensor([1, 1, 0, 0, 0, 1, 1]).bool()).tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match="4 experts cannot live on 5 ranks"):
        Placement.linear(4, 5)


@pytest.mark.parametrize("name", [name for name, policy in POLICIES.items() if policy.knows_ranks])
def test_ranks_that_nobody_knows_are_refused(name: str) -> None:
    knobs = {"oea": ",k0=1", "xshare": ",budget=8"}.get(name, "")
    policy = make_policy(f"{name}:per_rank=true{knobs}")
    with pytest.raises(ValueError, match="leave per_rank out"):
        policy.for_placement(None)
    assert make_policy(f"{name}:{knobs[1:]}").for_placement(None).spec == f"{name}:{knobs[1:]}".rstrip(":")


def test_only_policies_with_the_knob_know_ranks() -> None:
    assert {name for name, policy in POLICIES.items() if policy.knows_ranks} == {"lynx", "oea", "priced", "xshare"}
    with pytest.raises(ValueError, match="no knob 'per_rank'"):
        make_policy("topk:k=2,per_rank=true")
