"""What holds for every policy, always: this file walks the policy table."""

import pytest
import torch
from cases import Case, cases, make_logits, make_spec
from hypothesis import given, settings

from lynx_moe.policies import POLICIES, make_policy
from lynx_moe.routing import Routing, Rows, distinct, select

SPECS = [
    "vanilla",
    "lynx",
    "lynx:alpha=3,beta=2",
    "lynx:alpha=0.7,beta=1,pin_top1=true",
    "lynx:alpha=1,beta=0",
    "lynx-v1",
    "lynx-v1:num_keep=8",
    "lynx-v1:mode=confidence,threshold=0.2",
    "oea:k0=1",
    "random:num_keep=8",
]
walk = pytest.mark.parametrize("text", SPECS)
examples = settings(max_examples=60, deadline=None)


def route(text: str, case: Case, rows: Rows | None = None, own: Routing | None = None) -> Routing:
    fit = min(case.spec.num_experts, 8)
    return make_policy(text.replace("num_keep=8", f"num_keep={fit}")).route(
        case.logits, case.spec, rows or case.rows, own
    )


def same(a: Routing, b: Routing, rows: torch.Tensor) -> bool:
    """Bit for bit on the given rows (NaN weights of NaN rows equal one another)."""
    bits = [r.weights[rows].float().view(torch.int32) for r in (a, b)]
    return torch.equal(a.ids[rows], b.ids[rows]) and torch.equal(*bits)


def test_every_policy_is_walked() -> None:
    assert {text.partition(":")[0] for text in SPECS} == set(POLICIES)


@walk
@examples
@given(case=cases())
def test_identity_with_nothing_to_remap(text: str, case: Case) -> None:
    rows = Rows(valid=case.rows.valid, remap=torch.zeros(len(case.logits), dtype=torch.bool))
    assert same(route(text, case, rows), select(case.logits, case.spec), case.valid)


@walk
@examples
@given(case=cases())
def test_k_distinct_valid_ids_with_usable_weights(text: str, case: Case) -> None:
    routing = route(text, case)
    ids = routing.ids.sort(-1).values
    assert ids.min() >= 0
    assert ids.max() < case.spec.num_experts
    assert (ids[:, 1:] > ids[:, :-1])[case.valid].all()
    assert routing.weights.dtype == torch.float32
    assert routing.weights[case.voters].isfinite().all()


@walk
@examples
@given(case=cases())
def test_never_more_experts_and_padding_adds_none(text: str, case: Case) -> None:
    own, routing = select(case.logits, case.spec), route(text, case)
    num_experts = case.spec.num_experts
    before, after = distinct(own.ids, num_experts, case.valid), distinct(routing.ids, num_experts, case.valid)
    assert after <= before
    if case.valid.any():
        assert distinct(routing.ids, num_experts) == after


@walk
@examples
@given(case=cases())
def test_rows_that_keep_their_routing_are_untouched(text: str, case: Case) -> None:
    own = select(case.logits, case.spec)
    marked = Routing(own.ids, own.weights + 1)  # an engine's own weights, not recomputed ones, must come back
    assert same(route(text, case, own=marked), marked, case.valid & ~case.voters)


@walk
@examples
@given(case=cases())
def test_permuted_rows_permute_the_result(text: str, case: Case) -> None:
    order = torch.randperm(len(case.logits), generator=torch.Generator().manual_seed(1))
    valid, remap = (None if m is None else m[order] for m in (case.rows.valid, case.rows.remap))
    permuted = route(text, Case(case.logits[order], case.spec, Rows(valid=valid, remap=remap)))
    straight, rows = route(text, case), case.valid[order]
    assert torch.equal(permuted.ids[rows], straight.ids[order][rows])
    # torch's vectorised sigmoid and its scalar tail differ in the last bit, so a row's place may show in the weights.
    torch.testing.assert_close(permuted.weights[rows], straight.weights[order][rows], rtol=1e-6, atol=0, equal_nan=True)


@walk
@examples
@given(case=cases())
def test_one_row_with_nothing_donated_is_the_identity(text: str, case: Case) -> None:
    single = Case(case.logits[:1], case.spec, Rows())
    assert same(route(text, single), select(single.logits, case.spec), torch.tensor([True]))


@walk
@pytest.mark.parametrize("scheme", ["softmax", "grouped_bias"])
def test_traces_as_one_graph_of_fixed_shapes(text: str, scheme: str) -> None:
    rng = torch.Generator().manual_seed(7)
    case = Case(make_logits("normal", 7, 64, rng), make_spec(scheme, 64, rng), Rows())
    policy = make_policy(text)

    def decide(logits: torch.Tensor, valid: torch.Tensor, remap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        routing = policy.route(logits, case.spec, Rows(valid=valid, remap=remap))
        return routing.ids, routing.weights

    masks = torch.tensor([1, 1, 1, 1, 1, 0, 1]).bool(), torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool()
    torch._dynamo.reset()  # one code object serves all policies here, and dynamo counts its recompilations
    traced = torch.compile(decide, backend="eager", fullgraph=True)(case.logits, *masks)
    assert same(Routing(*traced), Routing(*decide(case.logits, *masks)), torch.ones(7, dtype=torch.bool))
    # On the meta device there is no data: reading any of it (a host sync, a data-dependent shape) raises.
    if case.spec.bias is None:
        ids, _ = decide(case.logits.to("meta"), *(m.to("meta") for m in masks))
        assert ids.shape == (7, case.spec.top_k)
