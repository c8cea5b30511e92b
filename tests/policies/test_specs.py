"""Spec strings: what they make, and what a mistake is answered with."""

import pytest

from lynx_moe import RouterSpec, make_policy
from lynx_moe.policies import ModelShape
from lynx_moe.policies.lynx import Lynx


def test_a_spec_makes_the_policy_and_the_policy_its_spec() -> None:
    for text in ("vanilla", "lynx", "lynx:alpha=0.7,beta=1", "lynx:alpha=3,beta=2,pin_top1=true", "random:num_keep=8"):
        assert make_policy(text).spec == text
    assert make_policy("lynx: beta=2 , alpha=3.0").spec == "lynx:alpha=3,beta=2"


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
    ],
)
def test_a_bad_spec_says_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_policy(text)


@pytest.mark.parametrize("text", ["oea:k0=9", "random:num_keep=4", "lynx-v1:num_keep=400"])
def test_a_knob_that_does_not_fit_the_model_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="top_k=8"):
        make_policy(text).check(RouterSpec(num_experts=128, top_k=8))


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
