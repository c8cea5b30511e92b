"""Rows that verify a draft weigh by their chance of being committed."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import slow_priced
import torch
from cases import Case, cases, drafted, make_calibration, make_costs
from hypothesis import given, settings

from lynx_moe import RouterSpec, Rows, make_policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.policies.contract.step import make_step
from lynx_moe.routing import distinct, select

examples = settings(max_examples=100, deadline=None)


@examples
@given(case=cases(), seed=st.integers(0, 2**32), calibrated=st.booleans(), prices=st.booleans())
def test_priced_sums_the_harm_to_expect(case: Case, seed: int, calibrated: bool, prices: bool) -> None:
    rng, num_rows = torch.Generator().manual_seed(seed), len(case.logits)
    price_T = torch.tensor([0.01, 0.03, 0.1])[torch.randint(3, (num_rows,), generator=rng)]
    rows = drafted(replace(case.rows, price=price_T if prices else None), num_rows, rng)
    policy = make_policy("priced")
    policy = policy.for_layer(0, {0: make_calibration(case.spec.num_experts)}) if calibrated else policy
    step = make_step(case.logits.float(), case.spec, rows, select(case.logits, case.spec))
    asked = price_T.tolist() if prices else [0.03] * num_rows
    expected = slow_priced.stays(policy, step, asked, rows.chance.tolist())
    assert set(policy.keep(step).nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("text", ["priced", "priced:price=0.1", "priced:num_keep=12"])
def test_certain_rows_are_as_rows_of_no_draft(text: str) -> None:
    logits, spec = torch.randn(7, 64), RouterSpec(num_experts=64, top_k=8)
    certain = Rows(chance=torch.ones(7), request=torch.arange(7), depth=torch.zeros(7, dtype=torch.int64))
    one, other = (make_policy(text).decide(logits, spec, rows) for rows in (None, certain))
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.weights, other.weights)


def test_a_draft_that_is_rarely_accepted_loads_fewer_experts() -> None:
    spec, loads = RouterSpec(num_experts=64, top_k=8), {0.95: 0, 0.3: 0}
    for seed in range(30):
        logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed)) * 2
        for share in loads:
            rows = Rows(chance=share ** torch.arange(4).float())
            loads[share] += int(distinct(make_policy("priced").decide(logits, spec, rows).ids, 64))
    assert loads[0.3] < 0.9 * loads[0.95]


def test_groups_hand_on_what_is_known_of_rows() -> None:
    spec, logits = RouterSpec(num_experts=64, top_k=8), torch.randn(8, 64)
    rng = torch.Generator().manual_seed(1)
    rows = replace(drafted(Rows(), 8, rng), load_cost_E=make_costs(64, rng))
    everybody = torch.ones(8, dtype=torch.bool)
    for text in ("priced", "moe-spec:budget=12", "acceptmoe", "cache-prior", "drop-on-miss:mass=0.4"):
        policy = make_policy(text)
        alone = policy.decide(logits, spec, rows)
        assert not torch.equal(alone.ids, select(logits, spec).ids)
        grouped = decide_groups([(policy, everybody)], logits, spec, select(logits, spec), rows)
        assert torch.equal(grouped.ids, alone.ids)


@pytest.mark.parametrize("text", ["moe-spec:budget=12", "acceptmoe"])
def test_a_request_s_set_is_its_own_and_rows_that_decode_are_left_alone(text: str) -> None:
    spec, policy = RouterSpec(num_experts=64, top_k=8), make_policy(text)
    logits = torch.randn(9, 64, generator=torch.Generator().manual_seed(4)) * 2
    rows = Rows(
        request=torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2]),
        depth=torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3]),
        chance=torch.tensor([1, 0.7, 0.5, 0.3, 1, 1, 0.7, 0.5, 0.3]),
    )
    own, final = select(logits, spec), policy.decide(logits, spec, rows)
    assert torch.equal(final.ids[4], own.ids[4])
    other = logits.clone()
    other[5:] = torch.randn(4, 64) * 2
    again = policy.decide(other, spec, rows)
    assert torch.equal(again.ids[:4].sort().values, final.ids[:4].sort().values)
    assert distinct(final.ids[:4], 64) < distinct(own.ids[:4], 64)


def test_acceptmoe_keeps_the_root_s_experts_and_moe_spec_its_budget() -> None:
    spec = RouterSpec(num_experts=64, top_k=8)
    logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(9)) * 2
    rows = Rows(request=torch.zeros(4, dtype=torch.int64), depth=torch.arange(4), chance=0.6 ** torch.arange(4).float())
    own = select(logits, spec)
    final = make_policy("acceptmoe").decide(logits, spec, rows)
    assert torch.equal(final.ids[0], own.ids[0])
    for budget in (8, 11, 20):
        kept = make_policy(f"moe-spec:budget={budget}").decide(logits, spec, rows)
        assert distinct(kept.ids, 64) <= budget
    with pytest.raises(ValueError, match=r"moe-spec: budget keeps 7 experts; it must keep from the model's top_k=8"):
        make_policy("moe-spec:budget=7").check(spec)
