"""What the weights rules mean, on every kind of router: mass that is kept, lost or shared out, and rows left alone."""

from dataclasses import replace

import pytest
import torch
from cases import BY_SCORES, SCHEMES, make_logits, make_spec

from lynx_moe import RouterSpec, Routing, make_policy
from lynx_moe.routing import select

E, K = 64, 8
PER_SCHEME = pytest.mark.parametrize("scheme", SCHEMES)
BY_SHARES = pytest.mark.parametrize("scheme", BY_SCORES)
ROUND = {"rtol": 2e-6, "atol": 1e-7}


def step(scheme: str, kind: str = "normal") -> tuple[torch.Tensor, RouterSpec]:
    rng = torch.Generator().manual_seed(len(scheme))
    return make_logits(kind, 16, E, rng), make_spec(scheme, E, rng)


@PER_SCHEME
@pytest.mark.parametrize("k", [1, 3, 8])
def test_topk_is_the_model_with_a_smaller_top_k(scheme: str, k: int) -> None:
    logits, spec = step(scheme)
    routing, fewer = make_policy(f"topk:k={k}").route(logits, spec), select(logits, replace(spec, top_k=k))
    assert torch.equal(routing.ids[:, :k], fewer.ids)
    torch.testing.assert_close(routing.weights[:, :k], fewer.weights, **ROUND)
    assert not routing.weights[:, k:].any()
    assert (routing.weights[:, k:] == 0).all()


@BY_SHARES
def test_mass_leaves_the_weights_of_what_stays_and_k2_of_top_k_is_the_same(scheme: str) -> None:
    logits, spec = step(scheme)
    own = select(logits, spec)
    for norm in ("mass", f"k2={K}"):
        routing = make_policy(f"topk:k=3,norm={norm}").route(logits, spec)
        torch.testing.assert_close(routing.weights[:, :3], own.weights[:, :3], **ROUND)
        assert (routing.weights[:, 3:] == 0).all()


@BY_SHARES
def test_k2_shares_the_row_s_total_among_its_first_n(scheme: str) -> None:
    logits, spec = step(scheme)
    plain = replace(spec, expert_scale=None)
    wide = select(logits, replace(plain, top_k=12))
    total = spec.scale if spec.renormalize else select(logits, spec).weights.sum(-1, keepdim=True)
    shares = wide.weights / wide.weights.sum(-1, keepdim=True) * total
    if spec.expert_scale is not None:
        shares = shares * spec.expert_scale[wide.ids]
    routing = make_policy("topk:k=5,norm=k2=12").route(logits, spec)
    torch.testing.assert_close(routing.weights[:, :5], shares[:, :5], **ROUND)


@pytest.mark.parametrize("scheme", ["softmax", "softmax_raw", "grouped", "sigmoid"])
def test_weaker_experts_shrink_the_output_by_mass_and_are_blown_up_by_model(scheme: str) -> None:
    logits, spec = step(scheme)
    before = select(logits, spec).weights.sum(-1)
    changed = (make_policy("oea:k0=1").route(logits, spec).ids != select(logits, spec).ids).any(-1)
    model, mass = (make_policy(f"oea:k0=1,norm={n}").route(logits, spec).weights.sum(-1) for n in ("model", "mass"))
    assert changed.sum() > 8
    torch.testing.assert_close(model, before, **ROUND)
    assert (mass[changed] < before[changed] * 0.999).all()
    assert torch.equal(mass[~changed], before[~changed])


@pytest.mark.parametrize("norm", ["model", "mass", "k2=4"])
@pytest.mark.parametrize("text", ["lynx:alpha=3,beta=2", "oea:k0=2", "xshare:budget=20", "topk:k=8", "naee:beta=0.01"])
def test_rows_whose_experts_all_stay_are_the_engine_s_bit_for_bit(text: str, norm: str) -> None:
    logits, spec = step("softmax", "ties")
    own = select(logits, spec)
    marked = Routing(own.ids.flip(-1), own.weights.flip(-1) * 1.25)  # and in an engine's own order
    routing = make_policy(f"{text},norm={norm}").route(logits, spec, None, marked)
    stays = (routing.ids == marked.ids).all(-1)
    assert torch.equal(routing.weights[stays], marked.weights[stays])
    by_set = (routing.ids.sort(-1).values == own.ids.sort(-1).values).all(-1)
    assert torch.equal(by_set, stays)  # a row that keeps its experts also keeps their order


def test_a_row_gets_nothing_from_experts_that_its_logits_forbid() -> None:
    never = -torch.inf  # row 0's only expert folds into the one that both others use, which row 0 must not
    logits = torch.tensor([[1.0, never, never], [never, 1.0, 0.0], [never, 1.0, 0.0]])
    tables = {name: torch.ones(3, 3) for name in ("fold_loss", "fold_scale")} | {"output_norm": torch.ones(3)}
    policy = make_policy("exfold:num_keep=1,norm=model").for_layer(0, {0: tables})
    routing = policy.route(logits, RouterSpec(num_experts=3, top_k=1))
    assert routing.ids.flatten().tolist() == [1, 1, 1]
    assert routing.weights.flatten().tolist() == [0, 1, 1]


@PER_SCHEME
def test_min_p_at_threshold_one_is_topk_even_among_equals(scheme: str) -> None:
    for kind in ("ties", "equal", "normal"):
        logits, spec = step(scheme, kind)
        if spec.bias is not None:
            spec = replace(spec, bias=torch.zeros(E))
        ours, topk = (make_policy(text).route(logits, spec) for text in ("min-p:k_min=2,threshold=1", "topk:k=2"))
        assert torch.equal(ours.ids, topk.ids)
        assert torch.equal(ours.weights, topk.weights)


def test_the_cpu_kernel_is_left_out_for_other_norms() -> None:
    logits, spec = step("softmax")
    policies = [make_policy(f"lynx:alpha=3,beta=2,norm={norm}") for norm in ("model", "mass")]
    for policy in policies:
        ours, fast = policy.route(logits, spec), policy.decide(logits, spec)
        assert torch.equal(ours.ids, fast.ids)
        torch.testing.assert_close(ours.weights, fast.weights, **ROUND)
    first, second = (policy.decide(logits, spec) for policy in policies)
    assert torch.equal(first.ids, second.ids)
    assert not torch.allclose(first.weights, second.weights)
