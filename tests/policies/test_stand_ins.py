"""What `priced` may do beside dropping: stand-ins for lost experts, heavier outputs that are larger, layers that ask
less."""

import pytest
import torch

from lynx_moe import RouterSpec, Rows, make_policy
from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.policies import ModelShape
from lynx_moe.policies.contract.depth import share
from lynx_moe.routing import scores, select

SPEC = RouterSpec(num_experts=24, top_k=4)
DEEP = ModelShape(model_type="x", num_layers=30, num_experts=24, top_k=4)


def logits_of(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, SPEC.num_experts, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", [SPEC, RouterSpec(num_experts=24, top_k=4, scoring="sigmoid", renormalize=False)])
@pytest.mark.parametrize("seed", range(4))
def test_a_row_takes_the_kept_experts_that_it_ranks_next_by_a_share_of_their_natural_weight(
    spec: RouterSpec, seed: int
) -> None:
    logits, rows = logits_of(9, seed), Rows(remap=torch.arange(9) < 8)
    own, dropped = select(logits, spec), make_policy("priced:price=0.5").route(logits, spec, rows)
    got, score_TE = make_policy("priced:price=0.5,reroute=0.5").route(logits, spec, rows), scores(logits, spec)
    loaded, stood_in = set(dropped.ids.unique().tolist()), 0
    assert set(got.ids.unique().tolist()) == loaded
    for t in range(9):
        mine, live = own.ids[t].tolist(), dropped.weights[t] > 0
        others = sorted(loaded - set(mine), key=lambda e: -float(logits[t, e]))
        mass, total = float(score_TE[t, own.ids[t]].sum()), float(own.weights[t].sum())
        for place in range(spec.top_k):
            if live[place]:
                assert got.ids[t, place] == mine[place]
                assert got.weights[t, place] == pytest.approx(float(dropped.weights[t, place]), rel=1e-6)
            elif others:
                expert = others.pop(0)
                assert got.ids[t, place] == expert
                weight = 0.5 * float(score_TE[t, expert]) / mass * total
                assert got.weights[t, place] == pytest.approx(weight, rel=1e-5)
                stood_in += 1
    assert stood_in > 2


def test_with_a_slope_a_light_expert_is_lost_first() -> None:
    """By its value v = s^2 (3 s)^2 alone, s being its share of the row; both rows want the same experts."""
    logits = torch.tensor([[2.0, 1.3, 1.3, 0.0], [2.0, 1.3, 1.3, 0.0]])
    spec, policy = RouterSpec(num_experts=4, top_k=3), make_policy("priced:slope=2")
    share_TK = select(logits, spec).weights.double()
    values = [(s * s * (3 * s) ** 2).item() for s in share_TK[0]]
    harm = [2 * (v + 1000 * v**3) for v in values]
    price = (harm[0] * harm[1]) ** 0.5
    assert make_policy(f"priced:price={price},slope=2").route(logits, spec).ids.unique().tolist() == [0]
    assert len(make_policy(f"priced:price={harm[1] * 0.9},slope=2").route(logits, spec).ids.unique()) == 3
    assert policy.decide(logits, spec).ids.tolist() == policy.route(logits, spec).ids.tolist()


def test_the_ends_of_a_model_ask_less_by_powers_of_two() -> None:
    assert [share(n, 4) for n in range(4)] == [0.5, 1, 1, 0.25]
    assert [share(n, 30) for n in (0, 1, 2, 3, 6, 7, 28, 29)] == [0.125, 0.25, 0.25, 0.5, 0.5, 1, 1, 0.25]
    assert share(0, 1) == 0.25
    assert share(48, 48) == 1  # a draft's layer behind the last


@pytest.mark.parametrize("priced", [False, True])
def test_a_layer_at_an_end_decides_as_one_at_its_part_of_the_price(priced: bool) -> None:
    layers = [Layer(name=f"model.layers.{n}.mlp", spec=SPEC) for n in range(30)]
    policies = fitted(make_policy("priced:price=0.4,ends=true").for_model(DEEP), layers, "x", torch.device("cpu"))
    logits = logits_of(8, 1)
    price = torch.rand(8, generator=torch.Generator().manual_seed(2)) if priced else None
    kept = []
    for number, policy in enumerate(policies):
        part = share(number, 30)
        given = Rows(price=price)
        expected = make_policy(f"priced:price={0.4 * part}").route(
            logits, SPEC, None if price is None else Rows(price=part * price)
        )
        for got in (policy.route(logits, SPEC, given), policy.decide(logits, SPEC, given)):
            assert torch.equal(got.ids.long(), expected.ids)
        kept.append(len(expected.ids.unique()))
    assert kept[0] > kept[10] < kept[29]


def test_without_ends_all_layers_are_alike_and_so_are_models_told_of_none() -> None:
    plain = make_policy("priced").for_model(DEEP)
    assert not plain.layers_differ
    assert plain.at_layer(0).part == 1
    assert make_policy("priced:ends=true").layers_differ
    assert make_policy("priced:ends=true") == make_policy("priced:ends=true").for_model(DEEP)


@pytest.mark.parametrize("bad", ["slope=3", "slope=-1", "reroute=1.5", "reroute=-1"])
def test_knobs_out_of_bounds_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match=bad.partition("=")[0]):
        make_policy(f"priced:{bad}")
