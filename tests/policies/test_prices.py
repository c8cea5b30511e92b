"""A price for every row: one price is what it was, mixed ones are plain sums, a lower one never loses more."""

from dataclasses import replace

import hypothesis.strategies as st
import one_price
import pytest
import slow_priced
import torch
from cases import Case, cases, make_calibration
from hypothesis import assume, given, settings

from lynx_moe import RouterSpec, Routing, Rows, make_policy
from lynx_moe.policies import Placement, Policy
from lynx_moe.policies.contract.fillers import fill_slots, without_repeats
from lynx_moe.policies.contract.step import Step, make_step
from lynx_moe.policies.priced import ALONE, ROUNDS, STEEP, Priced
from lynx_moe.routing import select

examples = settings(max_examples=150, deadline=None)
PRICES = (1e-6, 0.0009765625, 0.01, 0.03, 0.1, 0.5, 4.0, 1e38)


def step_of(case: Case, price_T: torch.Tensor | None) -> Step:
    rows = Rows(valid=case.rows.valid, remap=case.rows.remap, price=price_T)
    return make_step(case.logits.float(), case.spec, rows, select(case.logits, case.spec))


def tuned(text: str, case: Case, calibrated: bool) -> Policy:
    policy = make_policy(text).for_placement(Placement.linear(case.spec.num_experts, 3))
    return policy.for_layer(0, {0: make_calibration(case.spec.num_experts)}) if calibrated else policy


@examples
@given(case=cases(), price=st.sampled_from(PRICES), calibrated=st.booleans(), ranked=st.booleans())
def test_rows_at_one_price_are_what_that_price_was_before_rows_had_any(case, price, calibrated, ranked) -> None:
    price = min(torch.tensor(price).item(), 1e30)  # as a row holds it
    policy = tuned(f"priced:price={price!r}{',per_rank=true' * ranked}", case, calibrated)
    step = step_of(case, torch.full((len(case.logits),), price))
    assume(not step.alone())
    expected_E = one_price.keep(policy, step, price)
    assert torch.equal(policy.keep(step), expected_E)
    assert torch.equal(policy.keep(replace(step, price_T=None)), expected_E)
    at_another = replace(policy, price=7.0)  # rows say what they ask, whatever the policy would
    assert torch.equal(at_another.keep(step), expected_E)


@examples
@given(case=cases(), seed=st.integers(0, 2**32), calibrated=st.booleans())
def test_mixed_prices_are_the_rule_in_plain_sums(case: Case, seed: int, calibrated: bool) -> None:
    price_T = torch.tensor([0.0, 0.01, 0.03, 0.1])[
        torch.randint(4, (len(case.logits),), generator=torch.Generator().manual_seed(seed))
    ]
    policy, step = tuned("priced", case, calibrated), step_of(case, price_T)
    expected = slow_priced.stays(policy, step, price_T.tolist(), [1.0] * len(price_T))
    assert set(policy.keep(step).nonzero().flatten().tolist()) == expected


MIXED = {
    "case": cases(sizes_T=(2, 3, 7, 16), sizes_E=(12, 60, 64)),
    "price": st.sampled_from((0.003, 0.01, 0.03, 0.1, 0.3)),
    "others": st.lists(st.sampled_from((0.01, 0.03, 0.1, 0.3)), min_size=16, max_size=16),
    "common": st.booleans(),
}


@examples
@given(**MIXED, share=st.floats(0, 1))
def test_a_row_that_asks_less_never_loses_more(case, price, share, others, common) -> None:
    """From a common price, and from any as long as the middle one stays where it is."""
    policy, num_rows = make_policy("priced"), len(case.logits)
    before_T = torch.full((num_rows,), price) if common else torch.tensor(others[:num_rows])
    step = step_of(case, before_T)
    row = int(step.voters_T.int().argmax())
    after_T = before_T.clone()
    after_T[row] *= share
    lower = step_of(case, after_T)
    assume(step.voters_T.sum() > 1 and lower.voters_T.sum() > 1 and stays(policy, step, lower))
    keeps, keeps_lower = (policy.keep(each) | each.free_E for each in (step, lower))
    own = step.own.ids[row]
    assert not (keeps[own] & ~keeps_lower[own]).any()
    if keeps[own].any():  # else it keeps its heaviest
        lost = [policy.route(case.logits, case.spec, of) for of in (rows_at(case, before_T), rows_at(case, after_T))]
        lost = [weight_lost(step.own, routing, row) for routing in lost]
        assert lost[1] <= lost[0]


def stays(policy: Policy, *steps: Step) -> bool:
    """Whether the middle price is the same in these steps."""
    return len({policy.prices(step)[0].item() for step in steps}) == 1


@pytest.mark.parametrize("common", [True, False])
def test_for_a_neighbour_that_asks_more_nobody_ever_loses_less(common: bool) -> None:
    """As long as the middle price stays where it is: a row that asks more defends less."""
    policy, tried, moved = make_policy("priced"), 0, 0
    for seed in range(400):
        rng = torch.Generator().manual_seed(seed)
        logits, spec = torch.randn(5, 64, generator=rng) * 1.5, RouterSpec(num_experts=64, top_k=8)
        before_T = torch.full((5,), 0.03) if common else torch.tensor([0.003, 0.01, 0.03, 0.1, 0.3])
        after_T = before_T.clone()
        after_T[seed % 5] *= 1 + 4 * torch.rand(1, generator=rng).item()
        step = make_step(logits, spec, Rows(price=before_T), select(logits, spec))
        higher = replace(step, price_T=after_T)
        if stays(policy, step, higher):
            tried, moved = tried + 1, moved + int((policy.keep(higher) != policy.keep(step)).any())
            assert not (policy.keep(higher) & ~policy.keep(step)).any()
    assert tried > 200 < 3 * moved


@examples
@given(**MIXED)
def test_whatever_neighbours_ask_a_row_keeps_what_alone_is_worth_its_price(case, price, others, common) -> None:
    policy, num_rows = make_policy("priced"), len(case.logits)
    price_T = torch.tensor(others[:num_rows])
    price_T[0] = price if not common else price_T[0]
    step = step_of(case, price_T)
    assume(not step.alone())
    value_TK = policy.values(step)
    worth_TK = value_TK + STEEP * value_TK**3 > price_T[:, None].double() * (1 + 1e-6)  # float32 is compared
    assert (policy.keep(step) | step.free_E)[step.own.ids][worth_TK].all()


def test_what_is_not_promised_happens() -> None:
    """A neighbour that asks more costs a row some of its experts, and so may a middle price that falls with the row."""
    by_neighbour, by_itself = 0, 0
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        logits, spec = torch.randn(5, 64, generator=rng) * 1.5, RouterSpec(num_experts=64, top_k=8)
        price_T = torch.tensor([0.003, 0.01, 0.03, 0.1, 0.3])
        step = make_step(logits, spec, Rows(price=price_T), select(logits, spec))
        for row, other, factor in ((0, 1, 2.5), (2, 2, 0.2)):
            changed_T = price_T.clone()
            changed_T[other] *= factor
            now = replace(step, price_T=changed_T)
            own = step.own.ids[row]
            lost = bool((make_policy("priced").keep(step)[own] & ~make_policy("priced").keep(now)[own]).any())
            by_neighbour, by_itself = by_neighbour + (lost and row != other), by_itself + (lost and row == other)
    assert by_neighbour > 0
    assert by_itself > 0


def rows_at(case: Case, price_T: torch.Tensor) -> Rows:
    return Rows(valid=case.rows.valid, remap=case.rows.remap, price=price_T)


def weight_lost(own: Routing, final: Routing, row: int) -> float:
    held = set(final.ids[row][final.weights[row] != 0].tolist())
    weights = own.weights[row].double().tolist()
    return sum(weight for e, weight in zip(own.ids[row].tolist(), weights, strict=True) if e not in held)


def test_from_one_price_it_would_lose_more_if_losses_followed_the_mixed_decision() -> None:
    """Why what a row has lost is taken at the middle price: a case where the simpler rule fails, and this one holds."""
    found = 0
    for seed in range(400):
        rng = torch.Generator().manual_seed(seed)
        logits, spec = torch.randn(4, 64, generator=rng) * 1.5, RouterSpec(num_experts=64, top_k=8)
        step = make_step(logits, spec, Rows(price=torch.full((4,), 0.03)), select(logits, spec))
        lower = replace(step, price_T=torch.tensor([0.03 * torch.rand(1, generator=rng).item(), 0.03, 0.03, 0.03]))
        own = step.own.ids[0]
        found += int((simpler(step)[own] & ~simpler(lower)[own]).any())
        assert not (make_policy("priced").keep(step)[own] & ~make_policy("priced").keep(lower)[own]).any()
    assert found > 0


def simpler(step: Step) -> torch.Tensor:
    policy = make_policy("priced")
    ids_TK, value_TK, (price, factor_T1) = step.own.ids, policy.values(step), policy.prices(step)
    stays_E, lost_T1 = step.union(ids_TK), torch.zeros(len(ids_TK), 1, dtype=torch.float64)
    for share in ROUNDS:
        added_TK = value_TK + STEEP * value_TK * (3 * lost_T1 * (lost_T1 + value_TK) + value_TK * value_TK)
        harm_E = torch.zeros(64, dtype=torch.float64).scatter_add(0, ids_TK.flatten(), (added_TK * factor_T1).flatten())
        stays_E = stays_E & (harm_E > share * price)
        lost_T1 = value_TK.where(~stays_E[ids_TK], 0.0).sum(-1, keepdim=True)
    return stays_E


@pytest.mark.parametrize("price", [0.03, 0.1])
def test_a_row_alone_asks_a_share_of_its_price(price: float) -> None:
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(3)) * 2
    spec, own = RouterSpec(num_experts=64, top_k=8), select(logits, RouterSpec(num_experts=64, top_k=8))
    policy = make_policy(f"priced:price={price}")
    step = make_step(logits, spec, None, own)
    kept_E = one_price.keep(policy, step, ALONE * price)
    assert 0 < kept_E.sum() < 8
    assert torch.equal(policy.keep(step), kept_E)
    for rows in (None, Rows(price=torch.tensor([price]))):
        final = policy.route(logits, spec, rows, own)
        live = final.weights[0] != 0
        assert sorted(final.ids[0][live].tolist()) == kept_E.nonzero().flatten().tolist()
        assert (final.ids[0][~live] == final.ids[0][live].min()).all()  # nothing else is loaded
    donor = Rows(remap=torch.tensor([True, False]))
    both = Routing(own.ids.repeat(2, 1), own.weights.repeat(2, 1))
    accompanied = make_step(logits.repeat(2, 1), spec, donor, both)
    assert torch.equal(policy.keep(accompanied), one_price.keep(policy, accompanied, price))


def test_what_tells_policies_that_differ_in_price_only() -> None:
    assert make_policy("priced:price=0.1").without_price() == make_policy("priced") != make_policy("priced:norm=own")
    assert [make_policy(text).asks for text in ("vanilla", "lynx", "priced", "priced:price=0.1")] == [0, 1, 0.03, 0.1]
    assert make_policy("priced:num_keep=4").asks == 1
    assert [policy.knows_prices for policy in (Priced, type(make_policy("lynx")))] == [True, False]


def test_slots_left_over_hold_what_is_loaded_first_of_all_what_the_row_had_not_chosen() -> None:
    own = torch.tensor([[5, 2, 7], [1, 7, 3], [0, 4, 6], [5, 2, 7]])
    ids = torch.tensor([[5, -1, -1], [1, 7, -1], [0, 4, 6], [-1, 2, 7]])
    valid = torch.tensor([True, True, False, True])
    expected = [[5, 1, 2], [1, 7, 2], [0, 4, 6], [1, 2, 7]]
    assert fill_slots(ids, own, 8, valid).tolist() == expected
    assert fill_slots(torch.tensor([[-1, 4, -1]]), torch.tensor([[3, 4, 5]]), 8, None).tolist() == [[4, 4, 4]]


def test_repeated_ids_give_way_to_the_row_s_own_and_live_slots_stay() -> None:
    own = torch.tensor([[3, 4, 5], [5, 6, 7], [1, 2, 3]])
    ids = torch.tensor([[4, 4, 4], [5, 9, 5], [1, 2, 9]])
    weights = torch.tensor([[0.0, 0.9, 0.0], [0.5, 0.0, 0.0], [0.3, 0.3, 0.0]])
    assert without_repeats(ids, weights, own).tolist() == [[3, 4, 5], [5, 9, 6], [1, 2, 9]]
