"""The operator in the graph: eager and compiled alike, never aliasing its inputs, and counting what it returns."""

import numpy as np
import pytest
import torch

from lynx_moe.calibration.artifact import Artifact, Provenance, save
from lynx_moe.engines.shared.layers import Layer, without_kernel
from lynx_moe.engines.shared.metrics import Counters, HostCounters
from lynx_moe.engines.shared.tell.log import log_line
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model.operator import decided, reroute
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.policies import ModelShape, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

E, K = 60, 4
SPEC = RouterSpec(num_experts=E, top_k=K)


def make_plan(policy: str, *, stats: bool = True, graphs: bool = False) -> Plan:
    shape = ModelShape(model_type="tiny", num_layers=2, num_experts=E, top_k=K, name="tiny")
    options = Options(policy=policy, stats=stats)
    plan = Plan(options=options, shape=shape, max_rows=64, device=torch.device("cpu"), graphs=graphs)
    plan.layers += [Layer(name="layers.0", spec=SPEC), Layer(name="layers.1", spec=SPEC)]
    plan.seal()
    return plan


def begin(plan: Plan, past_prompt: list[bool], scheduled: list[int]) -> None:
    plan.rows.fill(np.array(past_prompt), np.array(scheduled))
    plan.begin_step()


def own_routing(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.randn(num_rows, E) * 2
    own = select(logits, SPEC)
    return logits, own.weights, own.ids.int()


@pytest.mark.parametrize("num_rows", [2, 7, 16])
def test_it_returns_the_policy_s_routing_on_decode_rows(num_rows):
    plan = make_plan("lynx:alpha=3,beta=2")
    begin(plan, [True] * num_rows, [1] * num_rows)
    logits, weights, ids = own_routing(num_rows)
    expected = plan.policy.decide(logits, SPEC, None, Routing(ids.long(), weights))
    for call in (reroute, decided):
        got_weights, got_ids = call(logits, weights, ids, 0)
        assert got_ids.dtype == ids.dtype
        assert got_weights.dtype == torch.float32
        assert torch.equal(got_ids.long(), expected.ids)
        assert torch.equal(got_weights, expected.weights)


@pytest.mark.parametrize(
    ("past_prompt", "scheduled"), [([True], [1]), ([False, False], [4, 3]), ([True, False], [5, 2])]
)
def test_steps_with_nothing_to_gain_are_copied_bit_for_bit(past_prompt, scheduled):
    plan = make_plan("lynx:alpha=0.1,beta=1")
    begin(plan, past_prompt, scheduled)
    logits, weights, ids = own_routing(sum(scheduled))
    got_weights, got_ids = reroute(logits, weights, ids, 0)
    assert torch.equal(got_weights, weights)
    assert torch.equal(got_ids, ids)
    assert got_ids.data_ptr() != ids.data_ptr()
    assert got_weights.data_ptr() != weights.data_ptr()
    assert decided(logits, weights, ids, 0) == (weights, ids)  # the same tensors


def test_prefill_rows_of_a_mixed_step_are_untouched():
    plan = make_plan("lynx:alpha=0.1,beta=1")
    begin(plan, [True] * 6 + [False], [1] * 6 + [5])
    logits, weights, ids = own_routing(11)
    got_weights, got_ids = reroute(logits, weights, ids, 0)
    assert torch.equal(got_ids[6:], ids[6:])
    assert torch.equal(got_weights[6:], weights[6:])
    assert not torch.equal(got_ids[:6], ids[:6])
    rows = Rows(remap=torch.arange(11) < 6)
    assert torch.equal(got_ids.long(), plan.policy.decide(logits, SPEC, rows, Routing(ids.long(), weights)).ids)


def test_padding_rows_load_and_count_nothing():
    plan = make_plan("lynx:alpha=0.1,beta=1")
    begin(plan, [True] * 4, [1] * 4)
    logits, weights, ids = own_routing(8)
    _, got_ids = reroute(logits, weights, ids, 1)
    _, alone = reroute(logits[:4], weights[:4], ids[:4], 0)
    assert torch.equal(got_ids[:4], alone)
    first, second = plan.stats().layers
    assert first.decode == second.decode
    assert set(got_ids[4:].flatten().tolist()) <= set(alone.flatten().tolist())


@pytest.mark.parametrize("policy", ["vanilla", "lynx:alpha=0.3,beta=1"])
def test_counts_equal_a_recount(policy):
    plan = make_plan(policy)
    before = after = changed = unchanged = 0
    for num_rows in (2, 5, 16, 33):
        begin(plan, [True] * num_rows, [1] * num_rows)
        logits, weights, ids = own_routing(num_rows)
        _, final = reroute(logits, weights, ids, 1)
        before, after = before + len(ids.unique()), after + len(final.unique())
        moved = int((ids != final).any(-1).sum())
        changed, unchanged = changed + moved, unchanged + (moved == 0)
    begin(plan, [False], [9])
    reroute(*own_routing(9), 1)
    tally = plan.stats().layers[1].decode
    assert (tally.before, tally.after, tally.changed_rows, tally.unchanged_steps) == (before, after, changed, unchanged)
    assert (tally.steps, tally.rows, tally.decode_rows) == (4, 56, 56)
    assert plan.stats().steps == {"prefill": 1, "single": 0, "decode": 4, "mixed": 0}
    plan.reset_stats()
    assert plan.stats().layers[1].decode.before == 0


@pytest.mark.parametrize("policy", ["lynx", "priced", "oea:k0=1"])
def test_a_plan_is_the_same_where_the_model_is_built_in_bfloat16(policy):
    torch.set_default_dtype(torch.bfloat16)
    try:
        plan = make_plan(policy)
    finally:
        torch.set_default_dtype(torch.float32)
    assert plan.rows.price.dtype == torch.float32
    begin(plan, [True] * 7, [1] * 7)
    logits, weights, ids = own_routing(7)
    assert torch.equal(decided(logits, weights, ids, 0)[1].long(), plan.policy.route(logits, SPEC).ids)


@pytest.mark.parametrize(("policy", "counted"), [("priced:price=10", 1), ("topk:k=1", 1), ("lynx", 0), ("vanilla", 0)])
def test_a_row_alone_is_counted_where_the_policy_acts_alone(policy, counted):
    plan = make_plan(policy)
    begin(plan, [True], [1])
    logits, weights, ids = own_routing(1)
    _, final = decided(logits, weights, ids, 0)
    tally = plan.stats().layers[0].single
    assert (tally.steps, tally.rows, tally.decode_rows) == (counted, 1, counted)
    assert (tally.before, tally.after) == (counted * K, counted * len(final.unique()))
    assert (len(final.unique()) < K) == bool(counted)
    assert plan.stats().steps["single"] == 1
    assert plan.stats().mean_before == counted * K / 2  # of two layers, one of which decided


def test_counts_on_a_device_equal_those_on_the_host():
    device, host = Counters(2, torch.device("cpu")), HostCounters(2)
    policy, totals = make_policy("lynx:alpha=0.3,beta=1"), device.totals
    for step, kind in enumerate((0, 1, None, 0)):
        logits = torch.randn(9, E)
        own, valid = select(logits, SPEC), torch.arange(9) < 5 + step
        for final in (own, policy.route(logits, SPEC, Rows(valid=valid), own), policy.decide(logits, SPEC, None, own)):
            for counters in (device, host):
                counters.begin(kind)
                counters.add(1, own, final, E, valid if final.counts is None else None)
    assert device.read() == host.read()
    assert device.read()[1][0][0] > device.read()[1][0][1] > 0
    assert device.read()[0] == [[0] * 4] * 3
    device.reset()
    host.reset()
    assert device.read() == host.read() == [[[0] * 4] * 3] * 2
    assert device.totals is totals  # a CUDA graph would go on adding to it


def test_bypassed_layers_are_named_and_not_averaged():
    plan = make_plan("lynx:alpha=0.3,beta=1")
    plan.bypassed["layers.0"] = "its kernel routes by itself"
    begin(plan, [True] * 8, [1] * 8)
    reroute(*own_routing(8), 1)
    stats = plan.stats()
    assert [layer.name for layer in stats.layers] == ["layers.1"]
    assert stats.mean_before == stats.layers[0].decode.before
    assert stats.as_dict()["bypassed_layers"] == {"layers.0": "its kernel routes by itself"}


def test_counting_can_be_switched_off():
    plan = make_plan("lynx:alpha=0.3,beta=1", stats=False)
    begin(plan, [True] * 8, [1] * 8)
    reroute(*own_routing(8), 0)
    assert plan.stats().layers[0].decode.before == 0


def test_dynamo_traces_through_it_and_state_is_read_at_run_time():
    plan = make_plan("vanilla")
    logits, weights, ids = own_routing(16)
    compiled = torch.compile(lambda *args: reroute(*args, 0), fullgraph=True, backend="aot_eager")
    begin(plan, [True] * 16, [1] * 16)
    assert torch.equal(compiled(logits, weights, ids)[1], ids)
    plan.set_policy("lynx:alpha=0.1,beta=1")
    assert torch.equal(compiled(logits, weights, ids)[1], reroute(logits, weights, ids, 0)[1])
    assert not torch.equal(compiled(logits, weights, ids)[1], ids)
    torch.library.opcheck(reroute, (logits, weights, ids, 0))


def test_the_policy_can_be_switched_unless_cuda_graphs_recorded_it():
    plan = make_plan("vanilla")
    assert plan.set_policy("lynx:alpha=3,beta=2") == "lynx:alpha=3,beta=2"
    with pytest.raises(ValueError, match="did you mean 'lynx'"):
        plan.set_policy("linx")
    with pytest.raises(ValueError, match=r"layer layers\.0 of tiny"):
        plan.set_policy("oea:k0=9")
    assert plan.policy.spec == "lynx:alpha=3,beta=2"
    with pytest.raises(ValueError, match="enforce_eager=True"):
        make_plan("vanilla", graphs=True).set_policy("lynx")


def test_a_policy_per_token_acts_on_a_single_row_and_is_not_counted_there():
    plan = make_plan("topk:k=1")
    logits, weights, ids = own_routing(1)
    for past_prompt, distinct in ((True, 1), (False, K)):  # a prompt of one token is left alone
        begin(plan, [past_prompt], [1])
        assert len(reroute(logits, weights, ids, 0)[1].unique()) == distinct
    assert plan.stats().layers[0].decode.before == 0


def test_every_layer_routes_by_its_own_calibration(tmp_path):
    layers = {n: {"gate_norm": torch.arange(E).float() * (1 - 2 * n)} for n in (0, 1)}
    provenance = Provenance(model="tiny", data="-", num_tokens=1, seed=0)
    save(Artifact(layers=layers, provenance=provenance), tmp_path / "c.safetensors")
    plan = make_plan("vanilla")
    plan.set_policy(f"reap:num_keep=30,data={tmp_path / 'c.safetensors'}")
    begin(plan, [True] * 16, [1] * 16)
    for layer, kept in ((0, range(30, E)), (1, range(30))):
        assert set(reroute(*own_routing(16), layer)[1].flatten().tolist()) <= set(kept)


def test_a_policy_that_lacks_its_calibration_is_refused_before_weights_load(tmp_path):
    with pytest.raises(ValueError, match=r"reap needs calibration data: .*\(layer layers\.0 of tiny\)"):
        make_plan("reap:share=0.5")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        make_plan("reap:share=0.5,data=nowhere")
    plan, path = make_plan("vanilla"), tmp_path / "c.safetensors"
    about = Provenance(model="tiny", data="-", num_tokens=1, seed=0)
    save(Artifact(layers={0: {"gate_norm": torch.ones(E)}}, provenance=about), path)
    with pytest.raises(ValueError, match="no calibration of layer 1; the data have layers 0"):
        plan.set_policy(f"reap:share=0.5,data={path}")
    assert plan.policy.spec == "vanilla"


def test_the_log_line_comes_when_due_and_only_after_decode_steps():
    plan = make_plan("lynx:alpha=0.3,beta=1")
    plan.last_log = (-1e9, 0)
    assert log_line(plan) is None
    begin(plan, [True] * 8, [1] * 8)
    for layer in (0, 1):
        reroute(*own_routing(8), layer)
    line = log_line(plan)
    stats = plan.stats()
    assert line.startswith(
        f"lynx_moe: {stats.mean_before:.1f} -> {stats.mean_after:.1f} distinct experts per layer, 1 "
    )
    assert log_line(plan) is None


def test_without_an_engine_the_functions_say_so(monkeypatch):
    from lynx_moe.engines.vllm import stats
    from lynx_moe.engines.vllm.step import plan

    monkeypatch.setattr(plan, "_active", [])
    with pytest.raises(RuntimeError, match="no vLLM engine with lynx_moe"):
        stats()


@pytest.fixture(autouse=True)
def _no_plan_stays_active():
    from lynx_moe.engines.vllm.step import plan

    before = list(plan._active)
    yield
    plan._active[:] = before


def test_an_idle_run_is_decided_where_cuda_graphs_record_it():
    for graphs, decisions in ((False, 0), (True, 1)):
        plan = make_plan("lynx:alpha=0.1,beta=1", graphs=graphs)
        plan.rows.idle()
        plan.begin_step()
        logits, weights, ids = own_routing(8)
        got_weights, got_ids = reroute(logits, weights, ids, 0)
        assert plan.decisions == decisions
        assert torch.equal(got_ids, ids)  # no row of it decodes
        assert torch.equal(got_weights, weights)


def test_layers_that_no_kernel_decides_are_told_once_with_the_reason():
    plan = make_plan("oea:k0=1,norm=mass")
    assert without_kernel(plan.layers, plan.by_layer, plan.device) == []  # a CPU has kernels of its own
    cuda = torch.device("cuda")
    assert without_kernel(plan.layers, plan.by_layer, cuda) == [
        "oea:k0=1,norm=mass: the kernels know norm=model only, and guard each step"
    ]
    for text, reasons in (("lynx", []), ("vanilla", []), ("topk:k=2", ["topk has no kernel"])):
        assert without_kernel(plan.layers, [make_policy(text)] * 2, cuda) == reasons
