"""Whatever is written where a spec belongs: a policy whose spec makes it again, or a ValueError that says why not."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lynx_moe.policies import POLICIES, ModelShape, knobs, make_policy
from lynx_moe.routing import RouterSpec

KNOBS = sorted({knob for policy in POLICIES.values() for knob in knobs(policy)})
ROUTER = RouterSpec(num_experts=64, top_k=8, groups=(4, 2))
SHAPE = ModelShape(model_type="qwen3_moe", num_layers=48, num_experts=128, top_k=8)
ODD = (
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "-0",
    "1e400",
    "5e-324",
    "1_0",
    "٣",
    "0x10",
    "true",
    "TRUE",
    "k2=8",
    "k2=٣",
    "a=b",
)
values = st.one_of(
    st.sampled_from((*ODD, "9" * 5000, "model", "mass", "own", "fold", "popularity", "confidence")),
    st.integers().map(str),
    st.integers(0, 64).map(str),
    st.floats().map(str),
    st.floats(0, 1).map(str),
    st.text(),
)


@st.composite
def specs(draw: st.DrawFn) -> str:
    """Like specs, mostly: names and knobs that exist, their own values or others, and odd signs between them."""
    name = draw(st.sampled_from(sorted(POLICIES)) | st.text(max_size=8))
    own = sorted(knobs(POLICIES[name])) if name in POLICIES else KNOBS
    parts = draw(st.lists(st.tuples(st.sampled_from(own or KNOBS) | st.sampled_from(KNOBS), values), max_size=4))
    sign = draw(st.sampled_from(("=", "=", "=", " = ", "", "==")))
    return name + draw(st.sampled_from((":", ":", ":", " : ", "", "::"))) + ",".join(k + sign + v for k, v in parts)


def outcome(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returns, and None; or None and its ValueError's message."""
    try:
        return call(), None
    except ValueError as error:
        return None, str(error)


@settings(max_examples=1500, deadline=None)
@given(text=specs() | st.text())
def test_a_spec_is_a_policy_that_writes_itself_or_a_value_error(text: str) -> None:
    policy, reason = outcome(lambda: make_policy(text))
    if reason is not None:
        assert reason
        assert reason.isprintable()
        return
    again = make_policy(policy.spec)
    assert again == policy
    assert again.spec == policy.spec
    for fits in (lambda: policy.for_model(SHAPE), lambda: policy.check(ROUTER)):
        assert outcome(fits)[1] != ""


NUMBERS = {int: st.integers(1, 8), float: st.floats(0.01, 1), bool: st.booleans()}


@st.composite
def policies(draw: st.DrawFn) -> str:
    """Specs with plausible numbers, so that most of them are right."""
    name = draw(st.sampled_from(sorted(POLICIES)))
    kinds = {knob: kind for knob, (kind, _) in knobs(POLICIES[name]).items() if kind in NUMBERS}
    chosen = draw(st.sets(st.sampled_from(sorted(kinds)))) if kinds else set()
    return f"{name}:" + ",".join(f"{knob}={draw(NUMBERS[kinds[knob]])}" for knob in sorted(chosen))


def test_most_plausible_specs_are_right() -> None:
    """The property above is not vacuous."""
    made = []

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(text=policies())
    def collect(text: str) -> None:
        try:
            made.append(make_policy(text).spec)
        except ValueError:
            made.append("")

    collect()
    assert sum(map(bool, made)) > len(made) / 4
    assert len({spec.partition(":")[0] for spec in made if spec}) >= len(POLICIES) - 2


@pytest.mark.parametrize("text", ["lynx:alpha=nan", "priced:price=nan", "naee:beta=nan", "lynx-v1:threshold=nan"])
def test_nan_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="nan"):
        make_policy(text)
