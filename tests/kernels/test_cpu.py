"""The numpy kernels equal the plain-torch policies: ids exactly, weights within float32 rounding."""

import hypothesis.strategies as st
import pytest
import torch
from cases import make_costs
from hypothesis import given, settings

from lynx_moe import RouterSpec, Routing, Rows, make_policy
from lynx_moe.kernels import cpu, fused
from lynx_moe.routing import distinct, select

POLICIES = ["lynx", "lynx:alpha=3,beta=2", "lynx:alpha=0.7,beta=1,pin_top1=true", "lynx:alpha=1,beta=0", "lynx:beta=4"]
# Both sides round a softmax of K float32 logits: the exponentials, their sum (K <= 8 terms), a division, a product.
RTOL = 16 * 2.0**-24
TIERS = torch.tensor([0.0, 0.01, 0.03, 0.1, 0.5, 50.0])


def spoil(kind: str, logits: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    some = torch.rand(logits.shape, generator=rng) < 0.4
    table = {
        "ties": logits.round(),
        "equal": torch.zeros_like(logits),
        "extreme": logits * 1e30,
        "minus_inf": logits.masked_fill(some, -torch.inf),
        "nan": logits.masked_fill(some & (torch.rand(len(logits), 1, generator=rng) < 0.3), torch.nan),
        "bfloat16": logits.bfloat16(),
    }
    return table.get(kind, logits)


@pytest.mark.parametrize("text", POLICIES)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_rows=st.sampled_from([1, 2, 3, 7, 16, 65]),
    sizes=st.sampled_from([(2, 1), (7, 3), (8, 2), (60, 4), (64, 8), (128, 8), (257, 6)]),
    kind=st.sampled_from(["normal", "ties", "equal", "extreme", "minus_inf", "nan", "bfloat16"]),
    renormalize=st.booleans(),
    masked=st.booleans(),
)
def test_the_kernel_decides_as_the_definition_does(text, seed, num_rows, sizes, kind, renormalize, masked) -> None:
    rng = torch.Generator().manual_seed(seed)
    num_experts, top_k = sizes
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, renormalize=renormalize, scale=2.0)
    logits = spoil(kind, torch.randn(num_rows, num_experts, generator=rng) * 2, rng)
    valid, remap = (torch.rand(num_rows, generator=rng) < share for share in (0.8, 0.7))
    rows = Rows(valid=valid, remap=remap) if masked else None
    own = select(logits, spec)
    marked = Routing(own.ids.int(), own.weights * 1.5)  # an engine's own, in its own type: what stays must be just that
    policy = make_policy(text)
    assert cpu.fits(logits, spec)
    expected, got = policy.route(logits, spec, rows, marked), policy.decide(logits, spec, rows, marked)
    assert torch.equal(got.ids, expected.ids)
    torch.testing.assert_close(got.weights, expected.weights, rtol=RTOL, atol=1e-38, equal_nan=True)
    if renormalize:  # recomputed weights then sum to 2 and the marked ones to 3: what stays is told apart
        bits = [weights.view(torch.int32) for weights in (expected.weights, marked.weights, got.weights)]
        stays = (bits[0] == bits[1]).all(-1)
        assert torch.equal(bits[2][stays], bits[1][stays])
    counted = got.counts or cpu.count(own.ids, got.ids, valid if masked else None)
    rows_T = valid if masked else torch.ones(num_rows, dtype=torch.bool)
    assert counted == (
        distinct(own.ids, num_experts, rows_T),
        distinct(expected.ids, num_experts, rows_T),
        ((own.ids != expected.ids).any(-1) & rows_T).sum(),
    )


@pytest.mark.parametrize(
    "text",
    [
        "priced:price=0",
        "priced:price=0.02",
        "priced:price=0.3,slope=1",
        "priced:price=1,norm=own",
        "priced:price=30,norm=own=1",
    ],
)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_rows=st.sampled_from([1, 2, 3, 7, 16, 65]),
    sizes=st.sampled_from([(2, 1), (8, 2), (60, 4), (64, 8), (257, 6)]),
    kind=st.sampled_from(["normal", "ties", "equal", "minus_inf", "nan", "bfloat16"]),
    scoring=st.sampled_from(["softmax", "sigmoid"]),
    masked=st.booleans(),
    calibrated=st.booleans(),
    priced=st.booleans(),
    drafts=st.booleans(),
    narrow=st.booleans(),
    costs=st.booleans(),
)
def test_priced_decides_as_the_definition_does(
    text, seed, num_rows, sizes, kind, scoring, masked, calibrated, priced, drafts, narrow, costs
) -> None:
    rng = torch.Generator().manual_seed(seed)
    num_experts, top_k = sizes
    bias = torch.randn(num_experts, generator=rng) if scoring == "sigmoid" else None
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, scoring=scoring, bias=bias, scale=2.0)
    logits = spoil(kind, torch.randn(num_rows, num_experts, generator=rng) * 2, rng)
    valid, remap = (torch.rand(num_rows, generator=rng) < share for share in (0.8, 0.7))
    price = TIERS[torch.randint(len(TIERS), (num_rows,), generator=rng)] if priced else None
    chance = torch.rand(num_rows, generator=rng).clamp(min=0.01) if drafts else None
    given = {"price": price, "chance": chance, "load_cost_E": make_costs(num_experts, rng) if costs else None}
    rows = Rows(valid=valid if masked else None, remap=remap if masked else None, **given)
    own = select(logits, spec)
    marked = Routing(
        own.ids.int() if narrow else own.ids, own.weights * 1.5
    )  # an engine's own: what stays is just that
    policy = make_policy(text)
    if calibrated:
        policy = policy.for_layer(0, {0: {"output_norm": torch.rand(num_experts, generator=rng) + 0.01}})
    expected, got = policy.route(logits, spec, rows, marked), policy.decide(logits, spec, rows, marked)
    assert got.ids.dtype == marked.ids.dtype
    assert torch.equal(got.ids.long(), expected.ids)
    torch.testing.assert_close(got.weights, expected.weights, rtol=RTOL, atol=1e-38, equal_nan=True)
    rows_T = valid if masked else torch.ones(num_rows, dtype=torch.bool)
    same_T = rows_T & (expected.weights.view(torch.int32) == marked.weights.view(torch.int32)).all(-1)
    assert torch.equal(got.weights[same_T].view(torch.int32), marked.weights[same_T].view(torch.int32))
    changed = ((own.ids != expected.ids).any(-1) & rows_T).sum()
    assert got.counts == (distinct(own.ids, num_experts, rows_T), distinct(expected.ids, num_experts, rows_T), changed)


@pytest.mark.parametrize("kernel", [True, False])
def test_priced_with_loads_that_all_cost_as_much_is_as_without_bit_for_bit(kernel: bool) -> None:
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        logits, spec = torch.randn(1 + seed, 60, generator=rng) * 2, RouterSpec(num_experts=60, top_k=4)
        policy = make_policy("priced:price=0.1")
        decide = policy.decide if kernel else policy.route
        ones, none = (decide(logits, spec, Rows(load_cost_E=cost)) for cost in (torch.ones(60), None))
        assert torch.equal(ones.ids, none.ids)
        assert torch.equal(ones.weights.view(torch.int32), none.weights.view(torch.int32))


def test_inputs_are_never_written_to() -> None:
    spec = RouterSpec(num_experts=64, top_k=8)
    logits = torch.randn(16, 64)
    own = select(logits, spec)
    before = logits.clone(), own.ids.clone(), own.weights.clone()
    routing = make_policy("lynx").decide(logits, spec, Rows(valid=torch.arange(16) < 12), own)
    assert not torch.equal(routing.ids, own.ids)
    assert all(torch.equal(a, b) for a, b in zip(before, (logits, own.ids, own.weights), strict=True))
    alone = make_policy("lynx").decide(logits[:1], spec, None, Routing(own.ids[:1], own.weights[:1]))
    for result in (routing, alone):  # a custom operator's outputs must not alias its inputs
        assert result.ids.data_ptr() != own.ids.data_ptr()
        assert result.weights.data_ptr() != own.weights.data_ptr()


@pytest.mark.parametrize(
    "special",
    [{"scoring": "sigmoid"}, {"bias": torch.zeros(64)}, {"groups": (4, 2)}],
)
def test_other_routers_take_the_definition(special: dict) -> None:
    spec = RouterSpec(num_experts=64, top_k=8, **special)
    logits = torch.randn(16, 64)
    assert not cpu.fits(logits, spec)
    policy = make_policy("lynx:alpha=2,beta=2")
    expected, got = policy.route(logits, spec), policy.decide(logits, spec)
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(got.weights, expected.weights)


def test_another_engine_can_start_where_numba_was_imported() -> None:
    """vLLM's CPU platform asks every attribute of every loaded module for vars(), and takes the answer for a dict."""
    ffi = pytest.importorskip("llvmlite.binding").ffi
    assert fused.loops() is not None
    assert isinstance(vars(ffi.lib), dict)
