"""Every published rule equals its transcription in `slow.py`: ids exactly, weights within float32 rounding."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import slow
import torch
from cases import BY_SCORES, Case, cases, make_calibration, make_costs, make_logits, make_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import Batch

from lynx_moe.policies import make_policy
from lynx_moe.routing import Routing, Rows, select

NORMS = ("model", "mass", "k2=2")
Changed = dict[int, tuple[list[int], list[float]]]


def oea(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    return "oea:k0=1", slow.rerouting(batch, slow.union(batch, 1), norm)


def xshare(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    budget = batch.spec.num_experts // 2
    return f"xshare:budget={budget}", slow.rerouting(batch, slow.xshare(batch, budget, 0), norm)


def xshare_alpha(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    budget = int(0.6 * batch.spec.num_experts)
    return "xshare:alpha=0.6,k0=1", slow.rerouting(batch, slow.xshare(batch, budget, 1), norm)


def moe_spec(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    budget = batch.spec.top_k + 1
    return f"moe-spec:budget={budget}", slow.rerouting(batch, slow.moe_spec(batch, budget), norm)


def acceptmoe(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    return "acceptmoe:", slow.rerouting(batch, slow.acceptmoe(batch), norm)


def reap(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    keep = slow.largest(table["gate_norm"], batch.spec.num_experts // 2)
    return "reap:share=0.5", slow.rerouting(batch, keep, norm)


def topk(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    return "topk:k=1", slow.dropping(batch, lambda row, rank: rank < 1, norm)


def alloc(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    kept = slow.alloc(batch, 1.5, 1)
    return "alloc:k=1.5", slow.dropping(batch, lambda row, rank: row.order(row.own)[rank] in kept[id(row)], norm)


def naee(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    def live(row: slow.Row, rank: int) -> bool:
        weights = [row.weights[row.own.index(e)] for e in row.order(row.own)]
        return rank == 0 or weights[rank] >= slow.f32(slow.f32(0.6) * weights[0])

    return "naee:beta=0.6", slow.dropping(batch, live, norm)


def min_p(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    def live(row: slow.Row, rank: int) -> bool:
        ranked = row.p if batch.spec.bias is None else row.choice
        p = [ranked[e] for e in row.order(row.own)]
        return rank < 1 or p[rank] > slow.f32(slow.f32(0.6) * p[0])

    return "min-p:k_min=1,threshold=0.6", slow.dropping(batch, live, norm)


def sere(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    target = slow.sere(batch, 1, 0.5, table["similarity"])
    return "sere:num_primary=1,rho=0.5", slow.merging(batch, target, norm, table["fold_scale"])


def exfold(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    target = slow.exfold(batch, 2, table["output_norm"], table["fold_loss"])
    return "exfold:num_keep=2", slow.merging(batch, target, norm, table["fold_scale"])


def drop_on_miss(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    gone = slow.drop_on_miss(batch, 0.5, 1)
    return "drop-on-miss:mass=0.5", slow.dropping(
        batch, lambda row, rank: row.order(row.own)[rank] not in gone(row), norm
    )


def cache_prior(batch: Batch, norm: str, table: dict) -> tuple[str, Changed]:
    changed = {}
    for t, row in batch.rows.items():
        ids = slow.cache_prior(batch, row, 0.3, 1)
        if set(ids) != set(row.own):
            changed[t] = ids, batch.weigh(row, ids, norm, "reroute")
    return "cache-prior:weight=0.3", changed


RULES: dict[Callable, tuple[str, ...]] = {
    **dict.fromkeys((oea, xshare, xshare_alpha, moe_spec, acceptmoe, reap, topk, alloc, naee, min_p), NORMS),
    drop_on_miss: ("own=1", *NORMS),
    cache_prior: NORMS,
    **dict.fromkeys((sere, exfold), ("own", "fold", *NORMS)),
}
CASES = [(rule, norm) for rule, norms in RULES.items() for norm in norms]


def experts(batch: Batch, ids: torch.Tensor) -> set[int]:
    rows = [row for row, valid in zip(ids.tolist(), batch.case.valid.tolist(), strict=True) if valid]
    return {e for row in rows for e in row} - {slow.EMPTY}


def compare(rule: Callable, norm: str, case: Case, order: list[int]) -> bool:
    """Whether the rule changed a row, after comparing. `order`: an engine's own order of a row's experts."""
    own = select(case.logits, case.spec)
    own = Routing(own.ids[:, order], own.weights[:, order])
    if case.rows.load_cost_E is None:
        cost_E = make_costs(case.spec.num_experts, torch.Generator().manual_seed(len(case.logits)))
        case = replace(case, rows=replace(case.rows, load_cost_E=cost_E))
    batch = Batch(case, own)
    tensors = make_calibration(case.spec.num_experts)
    text, changed = rule(batch, norm, {name: tensor.tolist() for name, tensor in tensors.items()})
    policy = make_policy(f"{text},norm={norm}".replace(":,", ":")).for_layer(0, {0: tensors})
    routing = policy.route(case.logits, case.spec, case.rows, own)
    ids, weights = own.ids.clone(), own.weights.clone()
    for t, (new_ids, new_weights) in changed.items():
        ids[t], weights[t] = torch.tensor(new_ids), torch.tensor(new_weights)
    gains = policy.acts_alone or len(batch.rows) > 1 or bool(batch.free)
    free = batch.held if policy.needs_residency else set()
    if not gains or len(experts(batch, ids) - free) > len(experts(batch, own.ids) - free):
        ids, weights, changed = own.ids, own.weights, {}
    ids = torch.tensor(slow.fill(ids.tolist(), own.ids.tolist(), case.valid.tolist()))
    assert routing.ids[case.valid].tolist() == ids[case.valid].tolist()
    bound = {"rtol": 2e-6, "atol": 1e-7 * max(1.0, case.spec.scale), "equal_nan": True}
    torch.testing.assert_close(routing.weights[case.valid], weights[case.valid], **bound)
    kept = [t for t in range(len(ids)) if case.valid[t] and t not in changed]
    assert torch.equal(routing.weights[kept].view(torch.int32), own.weights[kept].view(torch.int32))
    return bool(changed)


def orders(num: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(list(range(num)))


@pytest.mark.parametrize(("rule", "norm"), CASES, ids=lambda x: getattr(x, "__name__", x))
@settings(max_examples=30, deadline=None)
@given(case=cases(sizes_T=(1, 2, 3, 7), sizes_E=(4, 12), schemes=BY_SCORES), data=st.data())
def test_a_policy_is_its_transcription(rule: Callable, norm: str, case: Case, data: st.DataObject) -> None:
    compare(rule, norm, case, data.draw(orders(case.spec.top_k)))


def plain_cases() -> Iterator[Case]:
    for seed, scheme in enumerate(("softmax", "softmax_raw", "sigmoid_bias", "sqrtsoftplus_bias", "grouped_bias") * 4):
        rng = torch.Generator().manual_seed(seed)
        place, num_rows = torch.arange(6), 4 + seed % 3
        draft = Rows(request=place * 0, depth=place, chance=0.6 ** place.float())
        rows = Rows(**{name: None if part is None else part[:num_rows] for name, part in vars(draft).items()})
        yield Case(make_logits("normal", num_rows, 12, rng), make_spec(scheme, 12, rng), rows)


@pytest.mark.parametrize(("rule", "norm"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_the_comparison_does_compare(rule: Callable, norm: str) -> None:
    assert sum(compare(rule, norm, case, [2, 0, 1]) for case in plain_cases()) > 5


def test_the_scores_of_the_transcription_are_right() -> None:
    assert slow.score("softmax", [0.0, math.log(3.0)]) == pytest.approx([0.25, 0.75])
    assert slow.score("sigmoid", [0.0, -1000.0]) == [0.5, 0.0]
    assert slow.score("sqrtsoftplus", [100.0, -math.inf]) == [10.0, 0.0]
