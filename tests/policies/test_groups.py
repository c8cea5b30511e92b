"""Several policies in one step: the contract of one policy holds for the whole, and settled rows donate."""

import torch
from cases import Case, cases, make_logits, make_spec
from hypothesis import given, settings

from lynx_moe.policies import make_policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import Routing, Rows, distinct, loaded, select

examples = settings(max_examples=60, deadline=None)
SPECS = ("lynx", "lynx:alpha=0.7,beta=1", "topk:k=1", "vanilla")


def decided(case: Case, specs: tuple[str, ...] = SPECS) -> tuple[Routing, Routing, torch.Tensor]:
    """(own, final, bool [T]: in no group): rows take turns, the last of five stays exact."""
    turn_T = torch.arange(len(case.logits)) % (len(specs) + 1)
    may_T = case.valid if case.rows.remap is None else case.valid & case.rows.remap
    groups = [(make_policy(spec), may_T & (turn_T == place)) for place, spec in enumerate(specs)]
    own = select(case.logits, case.spec)
    final = decide_groups(groups, case.logits, case.spec, own, case.rows)
    return own, final, ~torch.stack([rows_T for _, rows_T in groups]).any(0)


def bits(weights: torch.Tensor) -> torch.Tensor:
    return weights.float().view(torch.int32)


@examples
@given(case=cases())
def test_rows_outside_all_groups_are_untouched_bit_for_bit(case: Case) -> None:
    own, final, exact_T = decided(case)
    rows_T = exact_T & case.valid
    assert torch.equal(final.ids[rows_T], own.ids[rows_T])
    assert torch.equal(bits(final.weights[rows_T]), bits(own.weights[rows_T]))


@examples
@given(case=cases())
def test_the_step_never_loads_more_and_padding_loads_nothing(case: Case) -> None:
    own, final, _ = decided(case)
    num_experts = case.spec.num_experts
    assert distinct(final.ids, num_experts, case.valid) <= distinct(own.ids, num_experts, case.valid)
    if case.valid.any():
        assert torch.equal(loaded(final.ids, num_experts), loaded(final.ids, num_experts, case.valid))
    assert not final.weights[~case.valid].any()


@examples
@given(case=cases())
def test_permuting_rows_permutes_the_result(case: Case) -> None:
    own = select(case.logits, case.spec)
    rows_T = torch.arange(len(case.logits)) % 2 == 0
    order = torch.randperm(len(case.logits))
    groups = [(make_policy("lynx"), rows_T), (make_policy("oea:k0=1"), ~rows_T)]
    first = decide_groups(groups, case.logits, case.spec, own)
    again = decide_groups(
        [(policy, mask[order]) for policy, mask in groups],
        case.logits[order],
        case.spec,
        Routing(own.ids[order], own.weights[order]),
    )
    assert torch.equal(first.ids[order], again.ids)


@examples
@given(case=cases())
def test_one_group_is_its_policy_alone(case: Case) -> None:
    policy, own = make_policy("lynx:alpha=0.7,beta=1"), select(case.logits, case.spec)
    may_T = case.valid if case.rows.remap is None else case.valid & case.rows.remap
    final = decide_groups([(policy, may_T)], case.logits, case.spec, own, case.rows)
    alone = policy.decide(case.logits, case.spec, Rows(valid=case.rows.valid, remap=may_T), own)
    assert torch.equal(final.ids[case.valid], alone.ids[case.valid])
    assert torch.equal(bits(final.weights[case.valid]), bits(alone.weights[case.valid]))


def test_a_later_group_keeps_what_an_earlier_one_loads() -> None:
    rng = torch.Generator().manual_seed(3)
    spec = make_spec("softmax", 60, rng)
    together = alone = 0
    for _ in range(20):
        logits = make_logits("normal", 16, 60, rng)
        own, first_T = select(logits, spec), torch.arange(16) < 8
        lynx, fast = make_policy("lynx:alpha=3,beta=2"), make_policy("oea:k0=1")
        final = decide_groups([(lynx, first_T), (fast, ~first_T)], logits, spec, own)
        apart = fast.decide(logits[8:], spec, None, Routing(own.ids[8:], own.weights[8:]))
        settled = lynx.decide(logits[:8], spec, None, Routing(own.ids[:8], own.weights[:8]))
        assert torch.equal(final.ids[:8], settled.ids)  # the earlier group is not influenced
        together += int((final.ids[8:] == own.ids[8:]).sum())
        alone += int((apart.ids == own.ids[8:]).sum())
    assert together > 1.2 * alone  # with what is loaded anyway, rows keep more of their own experts


def test_a_step_that_would_load_more_keeps_the_model_s_own_routing() -> None:
    """The first group moves onto experts that only it has, away from those that the second still has."""
    spec = make_spec("softmax", 4, torch.Generator().manual_seed(0))
    found = 0
    for seed in range(300):
        logits = make_logits("normal", 4, 4, torch.Generator().manual_seed(seed))
        own, first_T = select(logits, spec), torch.arange(4) < 2
        parts = [(make_policy("lynx:alpha=0.1,beta=1"), first_T), (make_policy("vanilla"), ~first_T)]
        final = decide_groups(parts, logits, spec, own)
        moved = parts[0][0].decide(logits[:2], spec, None, Routing(own.ids[:2], own.weights[:2]))
        if len(torch.cat((moved.ids, own.ids[2:])).unique()) > len(own.ids.unique()):
            found += 1
            assert torch.equal(final.ids, own.ids)
            assert torch.equal(final.weights, own.weights)
    assert found > 3
