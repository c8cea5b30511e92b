"""`priced` by plain sums: what goes at a price or a number, what the rest weighs, and what its knobs refuse."""

from dataclasses import replace

import pytest
import torch

from lynx_moe import RouterSpec, Rows, make_policy
from lynx_moe.policies import DEFAULT, Placement
from lynx_moe.policies.contract.gains import FLOOR, SPREAD, of_sensitivities
from lynx_moe.policies.priced import PRICE, ROUNDS, STEEP
from lynx_moe.routing import select

E, K, T = 12, 3, 6


def plainly(
    ids: list[list[int]], shares: list[list[float]], price: float, free: set[int], ranks: list[set[int]] | None = None
) -> list[list[bool]]:
    """Which slots of the voters' rows stay, by the definition; ranks: those of every expert, for levels."""
    stays = {e for row in ids for e in row}
    lost = [0.0] * len(ids)
    for share in ROUNDS:
        harm = dict.fromkeys(stays, 0.0)
        for row, values, x in zip(ids, shares, lost, strict=True):
            for e, v in zip(row, values, strict=True):
                if e in harm:
                    harm[e] += (x + v + STEEP * (x + v) ** 3) - (x + STEEP * x**3)
        if ranks is None:
            stays = {e for e in stays if harm[e] > share * price}
        else:
            stays = levelled(harm, free, share * price, ranks)
        kept = stays | free
        lost = [sum(v for e, v in zip(r, s, strict=True) if e not in kept) for r, s in zip(ids, shares, strict=True)]
    return [[e in stays | free for e in row] for row in ids]


def levelled(harm: dict[int, float], free: set[int], price: float, ranks: list[set[int]]) -> set[int]:
    """Levels go, the highest first, while their loss is worth it and they hold no donated expert."""
    lists = [
        sorted((e for e in {*harm, *free} if r in ranks[e]), key=lambda e: (e not in free, -harm.get(e, 0.0), e))
        for r in set().union(*ranks)
    ]
    level = {e: 1 + max(one.index(e) for one in lists if e in one) for e in {*harm, *free}}
    height = max(map(len, lists))
    while height and not any(level[e] == height for e in free):
        if sum(harm[e] for e in harm if level[e] == height) > price * len(lists):
            break
        height -= 1
    return {e for e in harm if level[e] <= height}


@pytest.mark.parametrize("price", [0.0, 0.03, 1.0, 100.0])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("ranked", ["", "ranks", "copies"])
@pytest.mark.parametrize("seed", range(5))
def test_an_expert_goes_while_its_loss_adds_at_most_the_price(
    price: float, calibrated: bool, ranked: str, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, spec = torch.randn(T, E, generator=rng) * 2, RouterSpec(num_experts=E, top_k=K)
    remap = torch.arange(T) < T - 1  # the last row keeps its routing and donates
    own, policy, gain = select(logits, spec), make_policy(f"priced:price={price}"), [1.0] * E
    if calibrated:
        norms = torch.rand(E, generator=rng) * 3 + 0.01
        policy = policy.for_layer(0, {0: {"output_norm": norms}})
        typical = (sum(n * n for n in norms.tolist()) / E) ** 0.5
        gain = [max(n / typical, FLOOR) ** 0.5 for n in norms.tolist()]
    ranks = None
    if ranked:
        ranks = [{r} for r in [0, 1, 2, *torch.randint(0, 3, (E - 3,), generator=rng).tolist()]]
        if ranked == "copies":
            ranks = [one | ({e % 3} if e % 2 else set()) for e, one in enumerate(ranks)]
        here = torch.tensor([[r in one for one in ranks] for r in range(3)])
        policy = replace(policy, per_rank=True).for_placement(Placement.fixed(here))
    ids, weights = own.ids[:-1].tolist(), own.weights[:-1].double().tolist()
    shares = [
        [(gain[e] * w / sum(row)) ** 2 for e, w in zip(row_ids, row, strict=True)]
        for row_ids, row in zip(ids, weights, strict=True)
    ]
    live = plainly(ids, shares, price, set(own.ids[-1].tolist()), ranks)
    routing = policy.route(logits, spec, Rows(remap=remap), own)
    assert torch.equal(routing.ids[-1], own.ids[-1])
    for t, (row, row_weights) in enumerate(zip(ids, weights, strict=True)):
        if not any(live[t]):
            live[t][row_weights.index(max(row_weights))] = True
        left = [w if stays else 0.0 for w, stays in zip(row_weights, live[t], strict=True)]
        scale = (sum(row_weights) / sum(left)) ** 0.3
        assert routing.weights[t].tolist() == pytest.approx([w * scale for w in left], rel=1e-6)
        got = routing.ids[t].tolist()
        assert [e for e, ok in zip(got, live[t], strict=True) if ok] == [
            e for e, ok in zip(row, live[t], strict=True) if ok
        ]


def test_a_number_of_experts_is_kept_and_higher_prices_keep_fewer() -> None:
    logits = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    spec = RouterSpec(num_experts=64, top_k=8)
    loads = [len(make_policy(f"priced:price={p}").route(logits, spec).ids.unique()) for p in (0, 0.03, 0.3, 3)]
    assert loads == sorted(loads, reverse=True)
    assert loads[-1] < loads[0] == len(select(logits, spec).ids.unique())
    assert len(make_policy("priced:num_keep=20").route(logits, spec).ids.unique()) == 20


def test_the_price_has_a_default_and_excludes_a_number() -> None:
    logits, spec = torch.randn(9, 16, generator=torch.Generator().manual_seed(2)), RouterSpec(num_experts=16, top_k=4)
    expected = make_policy(f"priced:price={PRICE}").route(logits, spec)
    assert torch.equal(make_policy(DEFAULT).route(logits, spec).ids, expected.ids)
    with pytest.raises(ValueError, match="not both"):
        make_policy("priced:price=0.1,num_keep=8")
    for bad in ("own=2", "own=x", "own=-0.1", "fold"):
        with pytest.raises(ValueError, match="norm"):
            make_policy(f"priced:norm={bad}")


def test_sensitivities_are_gains_within_a_layer_and_parts_of_the_price_between_layers() -> None:
    load = torch.tensor([0.5, 0.25, 0.25, 0.0])
    layers = {n: {"sensitivity": scale * torch.tensor([1.0, 2.0, 3.0, 100.0]), "load": load}
              for n, scale in ((3, 1.0), (5, 4.0), (6, 17.0))}  # fmt: skip
    found = {n: of_sensitivities(n, layers) for n in layers}
    mean = 1 * 0.5 + 2 * 0.25 + 3 * 0.25
    middle = 68 ** (1 / 3)
    assert [part for _, part in found.values()] == [4, 1, 0.25]
    assert [abs(part * scale / middle - 1) < 0.5 for (_, part), scale in zip(found.values(), (1, 4, 17), strict=True)]
    for gain, _ in found.values():
        assert gain.pow(4).tolist() == pytest.approx([1 / mean, 2 / mean, 3 / mean, SPREAD])


@pytest.mark.parametrize("seed", range(4))
def test_a_sensitive_policy_decides_by_its_layers_part_and_gains(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    spec, logits = RouterSpec(num_experts=E, top_k=K), 2 * torch.randn(T, E, generator=rng)
    load = torch.full((E,), K / E)
    layers = {
        n: {"sensitivity": s * (0.1 + torch.rand(E, generator=rng)), "load": load} for n, s in ((0, 1.0), (1, 20.0))
    }
    own, kept = select(logits, spec), []
    for number in layers:
        policy = make_policy("priced:price=0.1,sensitive=true").for_layer(number, layers)
        policy.check(spec)
        gain, part = of_sensitivities(number, layers)
        assert torch.equal(policy.gain_E, gain)
        shares = (gain[own.ids] * own.weights.double() / own.weights.double().sum(-1, keepdim=True)).square()
        live = plainly(own.ids.tolist(), shares.tolist(), 0.1 * part, set())
        routing, fused = policy.route(logits, spec), policy.decide(logits, spec)
        assert torch.equal(routing.ids, fused.ids.long())
        for t in range(T):
            wanted = [e for e, stays in zip(own.ids[t].tolist(), live[t], strict=True) if stays]
            got = {e for e, w in zip(routing.ids[t].tolist(), routing.weights[t].tolist(), strict=True) if w}
            assert got == set(wanted) or (not wanted and len(got) == 1)
        kept.append(len(routing.ids.unique()))
    assert kept[0] < kept[1]


def test_sensitive_needs_a_calibration_that_has_sensitivities() -> None:
    spec = RouterSpec(num_experts=E, top_k=K)
    with pytest.raises(ValueError, match="calibrate --sensitivity 32"):
        make_policy("priced:sensitive=true").check(spec)
    make_policy("priced:sensitive=true,data=x").check(spec)
    with pytest.raises(ValueError, match="leave one out"):
        make_policy("priced:sensitive=true,ends=true,data=x")
    norms = {0: {"output_norm": torch.ones(E), "load": torch.ones(E)}}
    with pytest.raises(ValueError, match="needs sensitivity of layer 0"):
        make_policy("priced:sensitive=true").for_layer(0, norms)
