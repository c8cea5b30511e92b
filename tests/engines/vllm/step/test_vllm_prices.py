"""Requests that ask different prices: one decision, exact rows untouched, dearer ones lose more; told and counted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lynx_moe.control.loss import mass_lost
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.options import EXACT
from lynx_moe.engines.shared.step.rows import EXACT_ROW
from lynx_moe.engines.shared.step.wishes import spec_of
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model.operator import decided
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.rows import take_up
from lynx_moe.engines.vllm.tell.samples import samples
from lynx_moe.policies import ModelShape, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

E, K = 60, 4
SPEC = RouterSpec(num_experts=E, top_k=K)
TIERS = ("exact", 0.01, None, "0.1", 0.3)  # None: the server's, 0.03


def make_plan(policy: str = "priced", **given: Any) -> Plan:
    shape = ModelShape(model_type="tiny", num_layers=1, num_experts=E, top_k=K, name="tiny")
    made = Plan(options=Options(policy=policy, **given), shape=shape, max_rows=64, device=torch.device("cpu"))
    made.layers.append(Layer(name="layers.0", spec=SPEC))
    made.seal()
    made.has_begun = True
    return made


def ask(made: Plan, wishes: list[Any]) -> list[str]:
    names = [str(number) for number in range(len(wishes))]
    new = [
        SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args={"lynx_moe": wish} if wish else None))
        for name, wish in zip(names, wishes, strict=True)
    ]
    take_up(made.requests, SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set()))
    return names


def begin(made: Plan, names: list[str]) -> None:
    ones = np.ones(len(names), int)
    made.rows.fill(ones.astype(bool), ones, made.requests.choices(names), made.requests.asked)
    made.begin_step()


@pytest.mark.parametrize(
    ("policy", "wish", "spec"),
    [
        ("priced", 0.05, "priced:price=0.05"),
        ("priced", "5e-2", "priced:price=0.05"),
        ("priced:price=0.1,norm=own", 1, "priced:price=1,norm=own"),
        ("priced:num_keep=8", "1.0", "priced:price=1"),
        ("lynx", 1, "priced:price=1"),
        ("priced", 0, EXACT),
        ("priced", "-0", EXACT),
    ],
)
def test_a_number_is_a_price_of_the_server_s_policy(policy: str, wish: Any, spec: str) -> None:
    assert spec_of(wish, Options(policy=policy)) == spec


@pytest.mark.parametrize("wish", [-0.1, "-1", float("nan"), "nan", "inf", float("-inf"), "1e999", 10**400])
def test_a_number_that_cannot_be_a_price_is_refused_in_one_line(wish: Any) -> None:
    with pytest.raises(ValueError, match=r"is no price: it must be finite, 0 \(exact\) or more, such as 0.05$"):
        spec_of(wish, Options(policy="priced"))


def test_a_preset_named_as_a_number_is_the_operator_s() -> None:
    assert spec_of("1", Options(policy="priced", presets={"1": "topk:k=1"})) == "topk:k=1"


def test_tiers_are_one_decision_in_which_exact_rows_are_untouched_and_dearer_ones_lose_more() -> None:
    made, lost = make_plan(), torch.zeros(len(TIERS))
    names = ask(made, list(TIERS) * 4)
    price = torch.tensor([0.0, 0.01, 0.03, 0.1, 0.3] * 4)
    for seed in range(60):
        begin(made, names)
        assert made.rows.groups
        assert len(made.requests.step) == 1
        logits = torch.randn(len(names), E, generator=torch.Generator().manual_seed(seed)) * 2
        own = select(logits, SPEC)
        weights, ids = decided(logits, own.weights, own.ids.int(), 0)
        expected = make_policy("priced").route(logits, SPEC, Rows(price=price), own)
        assert torch.equal(ids.long(), expected.ids)
        exact_T = price == 0
        assert torch.equal(ids[exact_T].long(), own.ids[exact_T])
        assert torch.equal(weights[exact_T], own.weights[exact_T])
        final = Routing(ids.long(), weights)
        for tier in range(len(TIERS)):
            rows = Rows(remap=torch.arange(len(names)) % len(TIERS) == tier)
            lost[tier] += mass_lost(own, final, rows) / 60
    assert lost[0] == 0
    assert (lost.diff() > 0.005).all()
    assert made.describe()["prices"] == {"0.01": 4, "0.03": 4, "0.1": 4, "0.3": 4}
    told = {labels[0]: value for name, labels, value in samples(made) if name == "lynx_moe_price_rows"}
    assert told == {"0.01": 240, "0.03": 240, "0.1": 240, "0.3": 240}
    assert {labels[0]: value for name, labels, value in samples(made) if name == "lynx_moe_rows"}["exact"] == 240


def test_other_policies_keep_their_turns_beside_prices() -> None:
    made = make_plan("lynx")
    names = ask(made, [None, 0.1, "exact", "oea:k0=1", 0.02, "fast"])
    assert made.requests.choices(names).tolist() == [0, 2, EXACT_ROW, 1, 2, 2]
    assert made.requests.asked.mixed
    assert [policy.without_price().spec for policy, _ in made.requests.step] == ["lynx", "oea:k0=1", "priced"]


def test_a_number_of_prices_that_nobody_bounds_is_counted_under_bounded_names() -> None:
    made = make_plan()
    for number in range(100):
        begin(made, ask(made, [0.01 + number / 1000, None]))
    assert len(made.tiers.told) <= 34
    assert sum(made.tiers.told.values()) == 200
    assert made.tiers.told["other"] > 50


def test_vanilla_s_rows_are_not_told_as_a_price_of_another_policy() -> None:
    made = make_plan("lynx")
    begin(made, ["a", "b"])
    assert made.describe()["prices"] == {}
    made.set_policy("priced:price=0.2")
    begin(made, ["a", "b"])
    assert made.describe()["prices"] == {"0.2": 2}
