"""What requests ask for: refused at the door if it is bad, found again on the worker, and decided group by group."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.shared.step import wishes
from lynx_moe.engines.shared.step.rows import EXACT_ROW, OWN_ROW
from lynx_moe.engines.vllm.front import admission
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model.operator import reroute
from lynx_moe.engines.vllm.step import plan
from lynx_moe.engines.vllm.step.built import Model
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.rows import take_up
from lynx_moe.policies import POLICIES, ModelShape, knobs, make_policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import RouterSpec, Routing, Rows, select

E, K = 60, 4
SPEC = RouterSpec(num_experts=E, top_k=K)
SHAPE = ModelShape(model_type="tiny", num_layers=1, num_experts=E, top_k=K, name="tiny")
LYNX, OEA = "lynx:alpha=0.3,beta=1", "oea:k0=1"


@st.composite
def any_wishes(draw):
    """Specs of every policy with knobs of every kind of nonsense, and texts that are no spec."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.text() | st.integers() | st.floats() | st.lists(st.text(), max_size=2))
    name = draw(st.sampled_from(sorted(POLICIES)))
    numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 4, 8, 60, 61, 1e-320, 1e-31, 1e31, 2**63, 10**40])
    words = st.sampled_from(["", "true", "model", "mass", "k2=3", "own", "confidence", "/etc/passwd", "٣"])
    given = draw(st.lists(st.sampled_from(sorted(knobs(POLICIES[name])) or ["x"]), max_size=3, unique=True))
    return f"{name}:{','.join(f'{knob}={draw(numbers | words)}' for knob in given)}"


def make_plan(policy: str = LYNX, **given: Any) -> Plan:
    made = Plan(options=Options(policy=policy, **given), shape=SHAPE, max_rows=64, device=torch.device("cpu"))
    made.layers.append(Layer(name="layers.0", spec=SPEC))
    made.seal()
    return made


def scheduled(finished: tuple[str, ...] = (), **wishes: Any) -> Any:
    new = [
        SimpleNamespace(req_id=name, sampling_params=SimpleNamespace(extra_args=wish and {"lynx_moe": wish}))
        for name, wish in wishes.items()
    ]
    return SimpleNamespace(scheduled_new_reqs=new, finished_req_ids=set(finished))


def step(made: Plan, names: str) -> tuple[torch.Tensor, torch.Tensor, Routing]:
    """A decode step of one row per request; (logits, final ids, own)."""
    made.rows.fill(np.ones(len(names), bool), np.ones(len(names), int), made.requests.choices(list(names)))
    made.begin_step()
    logits = torch.randn(len(names), E) * 2
    own = select(logits, SPEC)
    return logits, reroute(logits, own.weights, own.ids.int(), 0)[1].long(), own


def test_choices_follow_requests_from_arrival_to_end():
    requests = make_plan(max_policies=2).requests
    take_up(requests, scheduled(a=None, b=None))
    assert requests.choices("ab") is None
    take_up(requests, scheduled(c="exact", d=OEA, e="balanced", f="vanilla"))
    assert requests.choices("abcdef").tolist() == [0, 0, EXACT_ROW, 1, 0, EXACT_ROW]
    assert [policy.spec for policy, _ in requests.step] == [LYNX, OEA]
    assert requests.choices("dca").tolist() == [1, EXACT_ROW, 0]
    take_up(requests, scheduled(finished=("c", "d", "e", "f")))
    assert requests.choices("ab") is None
    take_up(requests, scheduled(g="exact"))
    take_up(requests, scheduled(g=None))  # the name again, of another request, while nobody said that the first ended
    assert requests.choices("ag") is None


def test_the_server_s_policy_is_looked_up_at_each_step_and_equal_policies_are_one_group():
    made = make_plan()
    take_up(made.requests, scheduled(a=None, b="balanced", c=OEA))
    made.set_policy(OEA)
    assert made.requests.choices("abc").tolist() == [0, 0, 0]
    assert [policy.spec for policy, _ in made.requests.step] == [OEA]
    made.set_policy("vanilla")
    assert made.requests.choices("abc").tolist() == [OWN_ROW, OWN_ROW, 0]
    made.rows.fill(np.ones(3, bool), np.ones(3, int), made.requests.choices("abc"))
    assert (made.rows.num_decode_rows, made.rows.num_exact_rows) == (1, 0)  # nobody asked for exact rows


def test_a_policy_that_fits_no_layer_leaves_its_request_exact(caplog):
    requests = make_plan().requests
    take_up(requests, scheduled(a="oea:k0=9"))
    assert requests.choices("ab").tolist() == [EXACT_ROW, 0]
    assert "stay exact: oea: k0=9" in caplog.text


def test_each_group_is_decided_by_its_policy_and_exact_rows_donate():
    made = make_plan()
    take_up(made.requests, scheduled(**dict.fromkeys("abc", "exact"), **dict.fromkeys("fghij", OEA)))
    logits, final, own = step(made, "abcdefghij")
    assert torch.equal(final[:3], own.ids[:3])
    place = torch.arange(10)
    parts = [(make_policy(LYNX), (place >= 3) & (place < 5)), (make_policy(OEA), place >= 5)]
    assert torch.equal(final, decide_groups(parts, logits, SPEC, own).ids)
    assert not torch.equal(final[3:], own.ids[3:])
    tally = made.stats().layers[0].decode
    assert (tally.before, tally.after) == (len(own.ids.unique()), len(final.unique()))
    assert (tally.rows, tally.decode_rows, tally.steps) == (10, 7, 1)


def test_one_policy_beside_exact_rows_is_that_policy_with_donors():
    made = make_plan("vanilla")
    take_up(made.requests, scheduled(a="exact", c=LYNX, d=LYNX))
    logits, final, own = step(made, "abcd")
    rows = Rows(remap=torch.tensor([False, False, True, True]))
    assert torch.equal(final, make_policy(LYNX).decide(logits, SPEC, rows, own).ids)


@pytest.mark.parametrize("names", ["a", "ab"])
def test_steps_of_exact_requests_alone_are_the_model_s_own(names):
    made = make_plan("topk:k=1")
    take_up(made.requests, scheduled(a="exact", b="exact"))
    _, final, own = step(made, names)
    assert torch.equal(final, own.ids)
    assert made.rows.kind is (Kind.SINGLE if names == "a" else Kind.DECODE)
    assert made.stats().layers[0].decode.unchanged_steps == (names == "ab")


def test_a_policy_per_token_acts_on_a_single_row_that_asks_for_it():
    made = make_plan("vanilla")
    take_up(made.requests, scheduled(a="topk:k=1"))
    assert len(step(made, "a")[1].unique()) == 1
    assert len(step(made, "b")[1].unique()) == K


@pytest.fixture
def door():
    processor = SimpleNamespace(external_req_ids=defaultdict(list))

    def make(recorded: str | None = None, **given: Any) -> Any:
        made = admission.Admission(Options(**{"policy": LYNX, **given}), processor)
        made.model = Model(shape=SHAPE, routers=(SPEC,), recorded=recorded)
        return made

    return make


@pytest.mark.parametrize("wish", ["exact", "balanced", "fast", "vanilla", "mine"])
def test_names_bring_no_policy_of_their_own(door, wish):
    assert door(max_policies=0, presets={"mine": OEA}).check(wish) is None


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (
            -3,
            "-3 is no price: it must be finite, 0 .exact. or more, such as 0.05; allowed: exact, balanced, fast",
        ),
        (None, "None must be a string"),
        (["exact"], "must be a string"),
        ("exactly", "unknown policy 'exactly'.*allowed: exact, balanced, fast"),
        ("lynx:alpha=x", "alpha=x must be a number"),
        ("oea:k0=9", "k0=9 is more than the model's top_k=4"),
        ("random:num_keep=61", "must keep from the model's top_k=4 to all 60"),
        ("x" * 301, "'x{20}'... is longer than 300 characters"),
        ("reap:share=0.5", "reap needs calibration data"),
        ("reap:share=0.5,data=/etc/passwd", "only the operator's presets may name files"),
    ],
)
def test_bad_wishes_are_refused_and_say_what_is_allowed(door, wish, message):
    with pytest.raises(ValueError, match=message) as caught:
        door().check(wish)
    assert "allowed:" in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(wish=any_wishes())
def test_whatever_is_let_in_decides_a_step(door, wish):
    refusal = None
    try:
        door().check(wish)
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert "allowed:" in refusal
        assert len(refusal) < 1500
        return
    plan = make_plan("vanilla")
    take_up(plan.requests, scheduled(**dict.fromkeys("ab", wish)))
    _, final, own = step(plan, "abcd")
    assert torch.equal(final[2:], own.ids[2:])
    assert final.min() >= 0
    assert final.max() < E


def test_a_policy_that_cannot_decide_is_refused_though_its_knobs_passed(door, monkeypatch):
    def fails(*_):
        raise IndexError("no such expert\n in line 3")

    monkeypatch.setattr(type(make_policy(OEA)), "keep", fails)
    with pytest.raises(ValueError, match="oea cannot decide a step with these knobs: no such expert; allowed"):
        door().check(OEA)
    made = make_plan("vanilla")
    with pytest.raises(ValueError, match="oea cannot decide"):
        made.set_policy(OEA)
    assert made.policy.spec == "vanilla"


def test_only_so_many_specs_run_at_a_time(door):
    made = door(max_policies=2)
    for number, wish in enumerate(("oea:k0=1", "oea:k0=2", "oea:k0=1", "fast", "exact")):
        with made.held(str(number), wish):
            made.processor.external_req_ids[str(number)].append("internal")
    with pytest.raises(ValueError, match=r"max_policies=2 specs of their own, and bring oea:k0=1, oea:k0=2; allowed"):
        made.check("oea:k0=3")
    assert made.check("oea:k0=2") == "oea:k0=2"
    del made.processor.external_req_ids["1"]  # it has ended
    assert made.check("oea:k0=3") == "oea:k0=3"
    with pytest.raises(RuntimeError), made.held("5", "oea:k0=3"):
        raise RuntimeError("the engine did not take it")
    assert made.check("oea:k0=4") == "oea:k0=4"
    with made.held("6", "topk:k=2"), pytest.raises(ValueError, match="max_policies=2"):  # one is on its way
        made.check("oea:k0=4")
    with pytest.raises(ValueError, match="max_policies=0 specs"):
        door(max_policies=0).check(OEA)


def test_where_cuda_graphs_recorded_a_policy_only_it_and_exact_are_allowed(door):
    made = door(LYNX)
    assert made.check("exact") is made.check("balanced") is made.check("vanilla") is None
    assert made.check(LYNX) == LYNX
    for wish in ("fast", OEA):
        with pytest.raises(ValueError, match=r"CUDA graphs have recorded 'lynx:alpha=0.3,beta=1'; allowed: exact"):
            made.check(wish)


def test_without_the_plugin_s_options_nothing_is_asked():
    engine = SimpleNamespace(vllm_config=SimpleNamespace(additional_config={}))
    params = SimpleNamespace(extra_args={"lynx_moe": 3})
    assert admission.add_request(lambda *args: args, engine, "1", "prompt", params) == (engine, "1", "prompt", params)
    assert admission.of(engine) is None
    assert wishes.asked(params) == 3


@pytest.fixture(autouse=True)
def _no_plan_stays_active():
    before = list(plan._active)
    yield
    plan._active[:] = before
