"""What holds for every policy, always: this file walks the policy table."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from cases import Case, cases, make_calibration, make_costs, make_logits, make_spec
from hypothesis import given, settings

from lynx_moe.policies import POLICIES, Placement, Policy, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, distinct, loaded, preference, select

SPECS = [
    "vanilla",
    "priced:price=0.02",
    "priced:num_keep=8",
    "priced:price=0.1,per_rank=true",
    "priced:price=0.1,reroute=0.5,slope=1",
    "lynx",
    "lynx:alpha=3,beta=2",
    "lynx:alpha=0.7,beta=1,pin_top1=true",
    "lynx:alpha=1,beta=0,norm=mass",
    "lynx:alpha=3,beta=2,per_rank=true",
    "lynx-v1",
    "lynx-v1:num_keep=8",
    "lynx-v1:mode=confidence,threshold=0.2",
    "oea:k0=1",
    "oea:k0=1,norm=k2=2",
    "oea:k0=1,per_rank=true",
    "xshare:budget=8,k0=1",
    "xshare:alpha=0.5",
    "xshare:budget=8,k0=1,per_rank=true,norm=mass",
    "sere:num_primary=1,rho=0.5",
    "sere:num_primary=2,rho=0,norm=mass",
    "exfold:num_keep=8",
    "exfold:num_keep=1,norm=model",
    "topk:k=1",
    "topk:k=2,norm=k2=2",
    "alloc:k=2",
    "alloc:k=1.5,norm=k2=2",
    "naee:beta=0.5",
    "min-p:k_min=1,threshold=0.5",
    "reap:share=0.5",
    "moe-spec:budget=8",
    "moe-spec:budget=8,norm=mass",
    "acceptmoe",
    "cache-prior",
    "cache-prior:weight=1,top_j=0,norm=mass",
    "drop-on-miss:mass=0.4",
    "drop-on-miss:mass=1,norm=model",
    "random:num_keep=8",
]
walk = pytest.mark.parametrize("text", SPECS)
walk_per_token = pytest.mark.parametrize("text", [text for text in SPECS if make_policy(text).token_level])
examples = settings(max_examples=30, deadline=None)


def make(text: str, num_experts: int, device: str = "cpu") -> Policy:
    """The policy with its numbers of experts made to fit, calibration attached, and experts on three ranks."""
    text = text.replace("=8", f"={min(num_experts, 8)}")
    calibration = {name: tensor.to(device) for name, tensor in make_calibration(num_experts).items()}
    placement = Placement.linear(num_experts, 3, device)
    return make_policy(text).for_layer(0, {0: calibration}).for_placement(placement)


def route(text: str, case: Case, rows: Rows | None = None, own: Routing | None = None) -> Routing:
    policy, rows = make(text, case.spec.num_experts), told(text, case.spec.num_experts, rows or case.rows)
    return policy.route(case.logits, case.spec, rows, own)


def told(text: str, num_experts: int, rows: Rows) -> Rows:
    """With costs for a policy that needs them."""
    if rows.load_cost_E is not None or not make_policy(text).needs_residency:
        return rows
    return replace(rows, load_cost_E=make_costs(num_experts, torch.Generator().manual_seed(3)))


def same(a: Routing, b: Routing, rows: torch.Tensor) -> bool:
    """Bit for bit on the given rows (NaN weights of NaN rows equal one another)."""
    bits = [r.weights[rows].float().view(torch.int32) for r in (a, b)]
    return torch.equal(a.ids[rows], b.ids[rows]) and torch.equal(*bits)


def test_every_policy_is_walked() -> None:
    assert {text.partition(":")[0] for text in SPECS} == set(POLICIES)


def test_only_experiments_outside_the_table_are_unguarded() -> None:
    assert all(policy.guarded for policy in POLICIES.values())


@walk
@examples
@given(case=cases())
def test_identity_with_nothing_to_remap(text: str, case: Case) -> None:
    rows = replace(case.rows, remap=torch.zeros(len(case.logits), dtype=torch.bool))
    assert same(route(text, case, rows), select(case.logits, case.spec), case.valid)


@walk
@examples
@given(case=cases(), seed=st.integers(0, 2**32))
def test_a_price_of_0_is_a_row_that_may_not_be_remapped(text: str, case: Case, seed: int) -> None:
    policy, num_rows = make(text, case.spec.num_experts), len(case.logits)
    on_T = torch.rand(num_rows, generator=torch.Generator().manual_seed(seed)) < 0.6
    price_T = torch.where(on_T, torch.tensor(policy.asks), 0.0)
    may_T = on_T if case.rows.remap is None else on_T & case.rows.remap
    masked, priced = replace(case.rows, remap=may_T), replace(case.rows, price=price_T)
    assert same(route(text, case, priced), route(text, case, masked), torch.ones(num_rows, dtype=torch.bool))
    if not policy.knows_prices:  # then prices are nothing else
        dearer = replace(priced, price=7 * price_T)
        assert same(route(text, case, dearer), route(text, case, masked), torch.ones(num_rows, dtype=torch.bool))


@walk
@examples
@given(case=cases())
def test_k_distinct_valid_ids_with_usable_weights(text: str, case: Case) -> None:
    routing = route(text, case)
    assert routing.ids.min() >= 0
    assert routing.ids.max() < case.spec.num_experts
    assert routing.weights.dtype == torch.float32
    assert routing.weights[case.voters].isfinite().all()
    num_loaded = distinct(routing.ids, case.spec.num_experts, case.valid)
    for row, weights in zip(routing.ids[case.valid].tolist(), routing.weights[case.valid].tolist(), strict=True):
        if len({*row}) < len(row):  # only where the step loads nothing else
            assert make_policy(text).drops_slots
            assert num_loaded == len({*row})
            held = [e for e, weight in zip(row, weights, strict=True) if weight != 0]
            assert len({*held}) == len(held)


@walk
@examples
@given(case=cases())
def test_never_more_experts_and_padding_adds_none(text: str, case: Case) -> None:
    """A policy that decides by what is in memory may add of that: it loads nothing."""
    own, routing = select(case.logits, case.spec), route(text, case)
    num_experts = case.spec.num_experts
    loads_E = torch.ones(num_experts, dtype=torch.bool)
    if make_policy(text).needs_residency:
        cost_E = told(text, num_experts, case.rows).load_cost_E
        assert cost_E is not None
        loads_E = cost_E >= 1
    before_E, after_E = (loaded(ids, num_experts, case.valid) & loads_E for ids in (own.ids, routing.ids))
    assert after_E.sum() <= before_E.sum()
    if case.valid.any():
        assert distinct(routing.ids, num_experts) == distinct(routing.ids, num_experts, case.valid)
    if "per_rank" in text:
        count = Placement.linear(num_experts, 3).count
        assert (
            count(loaded(routing.ids, num_experts, case.valid)).max()
            <= count(loaded(own.ids, num_experts, case.valid)).max()
        )


@walk
@examples
@given(case=cases())
def test_rows_that_keep_their_routing_are_untouched(text: str, case: Case) -> None:
    own = select(case.logits, case.spec)
    marked = Routing(own.ids, own.weights + 1)  # an engine's own weights, not recomputed ones, must come back
    routing = route(text, case, own=marked)
    assert same(routing, marked, case.valid & ~case.voters)
    assert same(routing, marked, case.valid & ((routing.ids == own.ids) & (routing.weights != 0)).all(-1))


@walk
@examples
@given(case=cases())
def test_permuted_rows_permute_the_result(text: str, case: Case) -> None:
    order = torch.randperm(len(case.logits), generator=torch.Generator().manual_seed(1))
    parts = {name: None if part is None else part[order] for name, part in vars(case.rows).items() if name[-1] != "E"}
    rows = Rows(**parts, load_cost_E=case.rows.load_cost_E)
    permuted = route(text, Case(case.logits[order], case.spec, rows))
    straight, mine = route(text, case), case.valid[order]
    assert same(permuted, Routing(straight.ids[order], straight.weights[order]), mine)


@walk
@examples
@given(case=cases(sizes_T=(1,)))
def test_one_row_with_nothing_donated_keeps_its_routing_unless_the_policy_acts_alone(text: str, case: Case) -> None:
    own, routing = select(case.logits, case.spec), route(text, case, Rows())
    if make_policy(text).acts_alone and make_policy(text).drops_slots:
        assert (routing.ids[0, :, None] == own.ids[0]).any(-1).all()
    elif not make_policy(text).acts_alone:
        assert same(routing, own, torch.tensor([True]))


@walk_per_token
@examples
@given(case=cases())
def test_per_token_means_that_other_rows_do_not_matter(text: str, case: Case) -> None:
    """But for what slots of weight 0 hold."""
    together = route(text, case)
    lone = Rows(remap=case.voters[-1:], load_cost_E=case.rows.load_cost_E)
    alone = route(text, Case(case.logits[-1:], case.spec, case.rows), lone)
    if case.valid[-1]:
        assert torch.equal(alone.weights.view(torch.int32), together.weights[-1:].view(torch.int32))
        holds = alone.weights != 0
        assert torch.equal(alone.ids[holds], together.ids[-1:][holds])


@walk
@examples
@given(case=cases(sizes_T=(2, 7, 64)))
def test_groups_that_the_model_masks_stay_masked(text: str, case: Case) -> None:
    _, allowed = preference(case.logits, case.spec)
    if allowed is not None:
        routing = route(text, case)
        assert (allowed.gather(-1, routing.ids) | (routing.weights == 0))[case.voters].all()


@walk
@pytest.mark.parametrize("scheme", ["softmax", "grouped_bias"])
def test_traces_as_one_graph_of_fixed_shapes(text: str, scheme: str) -> None:
    rng = torch.Generator().manual_seed(7)
    case = Case(make_logits("normal", 7, 64, rng), make_spec(scheme, 64, rng), Rows())
    policies = {device: make(text, 64, device) for device in ("cpu", "meta")}

    def decide(logits: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        names = ("valid", "remap", "price", "request", "depth", "chance", "load_cost_E")
        rows = Rows(**dict(zip(names, rows, strict=True)))
        routing = policies[logits.device.type].route(logits, case.spec, rows)
        return routing.ids, routing.weights

    masks = torch.tensor([1, 1, 1, 1, 1, 0, 1]).bool(), torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool()
    masks = (*masks, torch.tensor([0.1, 0.0, 0.03, 0.1, 0.01, 0.1, 0.1]))
    masks = (*masks, torch.tensor([0, 0, 0, 1, 2, 3, 3]), torch.tensor([0, 1, 2, 0, 0, 0, 1]))
    masks = (*masks, torch.tensor([1, 0.6, 0.3, 1, 1, 1, 0.6]), make_costs(64, rng))
    torch._dynamo.reset()  # one code object serves all policies here, and dynamo counts its recompilations
    traced = torch.compile(decide, backend="eager", fullgraph=True)(case.logits, *masks)
    assert same(Routing(*traced), Routing(*decide(case.logits, *masks)), torch.ones(7, dtype=torch.bool))
    # On the meta device there is no data: reading any of it (a host sync, a data-dependent shape) raises.
    if case.spec.bias is None:
        ids, _ = decide(case.logits.to("meta"), *(m.to("meta") for m in masks))
        assert ids.shape == (7, case.spec.top_k)


@walk
def test_every_policy_that_changes_rows_checks_the_weights_rule(text: str) -> None:
    text, policy = text.partition(",norm=")[0], make(text, 64)
    sign = "," if ":" in text else ":"
    says = "no knob 'norm'" if policy.is_identity else "norm=loud is unknown; allowed: .*model, mass, k2=N"
    with pytest.raises(ValueError, match=says):
        make_policy(f"{text}{sign}norm=loud")
    if not policy.is_identity:
        with pytest.raises(ValueError, match="can choose from 64 experts"):
            make(f"{text}{sign}norm=k2=65", 64).check(RouterSpec(num_experts=64, top_k=8))


@pytest.mark.parametrize("kind", ["normal", "flat", "ties"])
@pytest.mark.parametrize("text", [text for text in SPECS if not make_policy(text).needs_scores])
def test_own_only_looks_no_further(text: str, kind: str) -> None:
    """With the scores of experts that rows did not choose set to nothing, the same experts are loaded, and a row loses
    the same ones of its own."""
    spec, generator = RouterSpec(num_experts=24, top_k=4, renormalize=False), torch.Generator().manual_seed(2)
    for num_rows in (1, 2, 9, 30):
        logits = make_logits(kind, num_rows, 24, generator)
        own = select(logits, spec)
        hidden = torch.full_like(logits, -1e4).scatter(-1, own.ids, logits.gather(-1, own.ids))
        rows = told(text, 24, Rows())
        known, unknown = (make(text, 24).route(given, spec, rows, own) for given in (logits, hidden))
        assert torch.equal(loaded(known.ids, 24), loaded(unknown.ids, 24))
        kept = [(own.ids[:, :, None] == r.ids[:, None]) & (r.weights > 0)[:, None] for r in (known, unknown)]
        assert torch.equal(*(slots.any(-1) for slots in kept))
