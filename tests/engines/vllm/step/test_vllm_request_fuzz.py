"""Whatever a client writes into the request field or posts as a policy: an answer, or an error that says what to do."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.options import EXACT
from lynx_moe.engines.shared.step.wishes import understood
from lynx_moe.engines.shared.switching import GOALS
from lynx_moe.engines.vllm.front import admission, control, endpoint
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.built import Model
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.policies import POLICIES, ModelShape, knobs
from lynx_moe.routing import RouterSpec

E, K = 60, 4
SHAPE = ModelShape(model_type="tiny", num_layers=1, num_experts=E, top_k=K, name="tiny")
OPTIONS = Options(policy="lynx", presets={"half": "random:num_keep=30"})
PIECES = (*POLICIES, *OPTIONS.named, EXACT, *{f"{k}=" for p in POLICIES.values() for k in knobs(p)}, ":", ",", "=", "1")
wishes = st.lists(st.sampled_from(PIECES) | st.integers(0, 70).map(str) | st.text(max_size=3), max_size=8).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | wishes
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@pytest.fixture(scope="module")
def door() -> Any:
    made = admission.Admission(OPTIONS, SimpleNamespace(external_req_ids={}))
    made.model = Model(shape=SHAPE, routers=(RouterSpec(num_experts=E, top_k=K),))
    return made


@pytest.fixture(scope="module")
def plan() -> Plan:
    made = Plan(options=OPTIONS, shape=SHAPE, max_rows=8, device=torch.device("cpu"))
    made.layers.append(Layer(name="layers.0", spec=RouterSpec(num_experts=E, top_k=K)))
    made.seal()
    return made


def outcome(call: Callable[[], Any]) -> tuple[Any, ValueError | None]:
    """What a call returns, and None; or None and its ValueError."""
    try:
        return call(), None
    except ValueError as error:
        return None, error


@settings(max_examples=600, deadline=None)
@example(wish="half")
@example(wish="oea:k0=2")
@given(wish=wishes | anything)
def test_the_request_field(wish: Any, door: Any, plan: Plan) -> None:
    """What is let in, a worker can decide by; what is not is told in one line what is allowed."""
    brought, error = outcome(lambda: door.check(wish))
    if error is not None:
        assert "allowed:" in str(error)
        assert str(error).isprintable()
        return
    assert brought is None or brought.partition(":")[0] in POLICIES
    spec = understood(SimpleNamespace(extra_args={"lynx_moe": wish}), OPTIONS)
    assert spec is None or (plan.requests.policy(spec) is None) == (spec == EXACT)


@settings(max_examples=400, deadline=None)
@example(body=b'{"policy": "lynx"}')
@example(body=b'{"max_kl": NaN}')
@example(body=b'{"slo_tpot_ms": 1e400, "policy": "priced"}')
@given(
    body=st.binary()
    | anything.map(lambda value: json.dumps(value).encode())
    | wishes.map(lambda spec: json.dumps({"policy": spec}).encode())
    | st.dictionaries(st.sampled_from(["policy", *GOALS]), st.none() | st.floats() | st.integers() | anything).map(
        lambda asked: json.dumps(asked).encode()
    )
)
def test_what_is_posted_as_a_policy(body: bytes, plan: Plan) -> None:
    asked, error = outcome(lambda: endpoint._asked(body))
    if error is not None:
        assert isinstance(error, control.Refused)
        assert error.status == 400
        return
    full, error = outcome(lambda: plan.may_switch(asked)[0].spec)
    assert str(error)
    assert error is not None or plan.check(full)[0].spec == full
