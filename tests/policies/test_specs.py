"""Spec strings: what they make, and what a mistake is answered with."""

import pytest
import torch

from lynx_moe import RouterSpec, make_policy
from lynx_moe.policies import ModelShape
from lynx_moe.policies.contract.amounts import resolve
from lynx_moe.policies.published.lynx import Lynx


@pytest.mark.parametrize(
    "text",
    [
        "vanilla",
        "lynx",
        "lynx:alpha=0.7,beta=1",
        "lynx:alpha=3,beta=2,pin_top1=true,norm=mass",
        "lynx-v1:mode=confidence,threshold=0.2",
        "oea:k0=3,norm=k2=8",
        "xshare:budget=24,k0=1",
        "xshare:alpha=0.25,norm=mass",
        "sere:num_primary=2,rho=0.5,norm=fold,data=/a/b=c.0",
        "exfold:num_keep=32,norm=own,data=x.safetensors",
        "topk:k=4,norm=k2=8",
        "naee:beta=0.5",
        "min-p:k_min=1,threshold=1e-05",
        "reap:share=0.5",
        "reap:num_keep=64,data=x",
        "random:num_keep=8",
    ],
)
def test_a_spec_makes_the_policy_and_the_policy_its_spec(text: str) -> None:
    policy = make_policy(text)
    assert policy.spec == text
    assert make_policy(policy.spec) == policy


def test_spaces_order_and_defaults_do_not_show_in_the_spec() -> None:
    assert make_policy("lynx: norm = k2=8, beta=2 , alpha=3.0").spec == "lynx:alpha=3,beta=2,norm=k2=8"
    assert make_policy("exfold:num_keep=9,norm=fold").spec == "exfold:num_keep=9"
    assert make_policy("sere:num_primary=1,rho=0,norm=own").spec == "sere:num_primary=1,rho=0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("linx", "did you mean 'lynx'"),
        ("", "unknown policy ''"),
        ("lynx:alfa=3", "did you mean 'alpha'"),
        ("lynx:alpha=0", "above 0"),
        ("lynx:alpha=-1,beta=2", "above 0"),
        ("lynx:alpha=nan,beta=2", "above 0"),
        ("lynx:beta=-1", "from 0 to 16"),
        ("lynx:beta=1.5", "whole number"),
        ("lynx:alpha=fast", "a number"),
        ("lynx:alpha", "lacks a value"),
        ("lynx:alpha=1,alpha=2", "twice"),
        ("lynx:pin_top1=maybe", "true or false"),
        ("oea", "needs k0"),
        ("oea:k0=0", "at least 1"),
        ("random", "needs num_keep"),
        ("lynx-v1:mode=loud", "popularity, confidence"),
        ("lynx-v1:mode=confidence,threshold=2", "between 0 and 1"),
        ("vanilla:x=1", "no knob 'x'"),
        ("vanilla:norm=mass", "no knob 'norm'"),
        ("lynx:norm=fold", "allowed: model, mass, k2=N"),
        ("sere:num_primary=1,rho=1,norm=k3=4", "allowed: own, fold, model, mass, k2=N"),
        ("lynx:norm=k2", "norm=k2=8"),
        ("lynx:norm=k2=", "norm=k2=8"),
        ("lynx:norm=k2=0", "at least 1"),
        ("lynx:norm=k2=-3", "at least 1"),
        ("lynx:norm=", "lacks a value"),
        ("xshare", "exactly one of budget=VALUE or alpha=VALUE; given: none"),
        ("xshare:budget=9,alpha=0.5", "given: budget=9, alpha=0.5"),
        ("xshare:alpha=1.5", "above 0 and be at most 1"),
        ("xshare:alpha=nan", "above 0 and be at most 1"),
        ("xshare:budget=9,k0=-1", "at least 0"),
        ("reap", "share=VALUE or num_keep=VALUE"),
        ("reap:share=0", "above 0"),
        ("sere:num_primary=2", "needs rho"),
        ("sere:num_primary=0,rho=0.5", "at least 1"),
        ("sere:num_primary=1,rho=2", "between 0 and 1"),
        ("exfold", "needs num_keep"),
        ("topk:k=0", "at least 1"),
        ("naee:beta=0", "above 0"),
        ("min-p:k_min=0,threshold=0.5", "at least 1"),
        ("min-p:k_min=1,threshold=2", "at most 1"),
    ],
)
def test_a_bad_spec_says_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_policy(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("oea:k0=9", "top_k=8"),
        ("random:num_keep=4", "top_k=8"),
        ("lynx-v1:num_keep=400", "top_k=8"),
        ("xshare:budget=7", "budget keeps 7 experts; .* top_k=8 to all 128"),
        ("xshare:alpha=0.05", "alpha keeps 6 experts"),
        ("xshare:budget=9,k0=9", "top_k=8"),
        ("reap:share=0.05,data=x", "share keeps 6 experts"),
        ("reap:num_keep=129,data=x", "num_keep keeps 129 experts"),
        ("sere:num_primary=9,rho=0.5,data=x", "top_k=8"),
        ("exfold:num_keep=0,data=x", "from 1 to all 128"),
        ("topk:k=9", "top_k=8"),
        ("min-p:k_min=9,threshold=0.5", "top_k=8"),
        ("lynx:norm=k2=129", "can choose from 128 experts"),
        ("sere:num_primary=1,rho=0.5", "write sere:num_primary=1,rho=0.5,data=FILE"),
    ],
)
def test_a_knob_that_does_not_fit_the_model_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_policy(text).check(RouterSpec(num_experts=128, top_k=8))


def test_a_k2_wider_than_the_groups_of_a_row_is_refused() -> None:
    spec = RouterSpec(num_experts=64, top_k=4, groups=(8, 2))
    make_policy("topk:k=2,norm=k2=16").check(spec)
    with pytest.raises(ValueError, match="can choose from 16 experts"):
        make_policy("topk:k=2,norm=k2=17").check(spec)


@pytest.mark.parametrize(("share", "num_experts", "num_keep"), [(0.29, 100, 29), (0.5, 9, 4), (1.0, 8, 8)])
def test_a_share_is_rounded_down(share: float, num_experts: int, num_keep: int) -> None:
    assert resolve(None, share, RouterSpec(num_experts=num_experts, top_k=1)) == num_keep


def test_calibration_is_attached_to_a_copy_and_is_no_knob() -> None:
    policy = make_policy("reap:num_keep=2")
    attached = policy.for_layer(3, {3: {"gate_norm": torch.tensor([1.0, 3.0, 2.0])}})
    assert attached == policy
    assert attached.spec == policy.spec
    spec, logits = RouterSpec(num_experts=3, top_k=1), torch.eye(3)
    assert set(attached.route(logits, spec).ids.flatten().tolist()) == {1, 2}
    with pytest.raises(ValueError, match="needs calibration data"):
        policy.route(logits, spec)
    with pytest.raises(ValueError, match="gate_norm is not attached"):
        make_policy("reap:num_keep=2,data=x").route(logits, spec)
    with pytest.raises(ValueError, match="this router has 4 experts"):
        attached.check(RouterSpec(num_experts=4, top_k=1))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (ModelShape(model_type="mixtral", num_layers=32, num_experts=8, top_k=2), "lynx:alpha=0.7,beta=1"),
        (ModelShape(model_type="mixtral", num_layers=56, num_experts=8, top_k=2), "lynx:alpha=1,beta=1"),
        (ModelShape(model_type="qwen3_moe", num_layers=48, num_experts=128, top_k=8), "lynx:alpha=3,beta=2"),
        (
            ModelShape(
                model_type="qwen3_moe", num_layers=94, num_experts=128, top_k=8, name="Qwen3-235B-A22B-Thinking"
            ),
            "lynx:alpha=1,beta=2",
        ),
        (ModelShape(model_type="qwen3_moe", num_layers=4, num_experts=64, top_k=8), "lynx"),
    ],
)
def test_open_knobs_take_the_published_values(shape: ModelShape, expected: str) -> None:
    assert make_policy("lynx").for_model(shape).spec == expected
    assert make_policy("lynx:alpha=2,beta=3").for_model(shape) == Lynx(alpha=2.0, beta=3)
    assert make_policy("lynx:norm=mass,pin_top1=true").for_model(shape).norm == "mass"
