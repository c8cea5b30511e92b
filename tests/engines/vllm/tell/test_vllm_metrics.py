"""From a plan's counts to the text of /metrics, without a server."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from told import SPEC, make_plan, read, text, writer
from vllm.config import ParallelConfig
from vllm.entrypoints.serve.instrumentator.metrics import attach_router

from lynx_moe.engines.shared.families import FAMILIES
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.step.rows import Asked
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.drafter import DrafterPlan
from lynx_moe.engines.vllm.step.shadows.passes import Shadows
from lynx_moe.engines.vllm.step.shadows.sample import TOLD as SHADOWED
from lynx_moe.engines.vllm.step.shadows.sample import Effect, Sample
from lynx_moe.engines.vllm.step.verified import TOLD
from lynx_moe.engines.vllm.tell import collector, exporter
from lynx_moe.routing import select


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(exporter.DIRECTORY, str(tmp_path))
    return tmp_path


def test_the_text_says_what_the_plan_counted() -> None:
    plan = make_plan()
    writer(plan).tell()
    seen, stats = read(), plan.stats()
    assert seen.values("layer_steps_total", "layers") == ["00", "01"]
    for name in ("before", "after"):
        expected = sum(getattr(layer.decode, name) for layer in stats.layers)
        assert seen.total(f"distinct_experts_{name}_total", step="decode") == expected
    assert seen.total("layer_steps_total") == 2
    assert seen.total("steps_total") == 2
    assert seen.total("steps_total", kind="prefill") == 1
    assert [seen.total("rows_total", handling=one) for one in ("remappable", "exact", "bypassed")] == [8, 0, 5]
    assert seen.total("decision_seconds_count") == 2
    assert [seen.total("layers", routing=one) for one in ("policy", "own")] == [2, 1]
    assert seen.label("policy_info", "policy") == "lynx:alpha=0.3,beta=1"
    assert seen.total("guard_enabled") == 0
    assert "# TYPE lynx_moe_steps_total counter" in text()
    assert FAMILIES["lynx_moe_steps"].text in text()


def test_changes_are_counted_by_who_made_them() -> None:
    plan = make_plan()
    plan.set_policy("oea:k0=3")
    writer(plan).tell()
    assert read().total("policy_changes_total", by="operator") == 1
    assert read().total("policy_changes_total", by="guard") == 0
    assert read().label("policy_info", "policy") == "oea:k0=3"


def test_stages_of_a_pipeline_are_one_engine_and_engines_add_up() -> None:
    """Every step passes both stages, one switch switches both; each has layers of its own."""
    plans = {"0": make_plan(), "1": make_plan(first_layer=3)}
    for stage, plan in plans.items():
        plan.set_policy("oea:k0=3")
        writer(plan, stage=stage).tell()
    seen = read()
    assert len(seen.engines()) == 1
    assert seen.total("steps_total") == 2
    assert seen.total("rows_total", handling="remappable") == 8
    assert seen.total("policy_changes_total", by="operator") == 1
    assert seen.values("layer_steps_total", "layers") == ["00", "01", "03", "04"]
    assert seen.total("layers", routing="policy") == 4
    assert seen.total("layer_steps_total") == 4
    assert seen.total("decision_seconds_count") == 4
    changed = sum(layer.decode.changed_rows for plan in plans.values() for layer in plan.stats().layers)
    assert seen.total("rows_remapped_total") == changed > 0
    more = [make_plan(), make_plan()]
    writer(more[0], instance="j", engine="1").tell()
    writer(more[1], instance="k", model_name="n").tell()
    assert list(read().engines()) == [("m", "0"), ("m", "1"), ("n", "0")]
    assert read().engines()["m", "1"].total("steps_total") == 2
    assert read().total("steps_total") == 3 * 2


def test_the_engine_s_number_is_the_one_of_vllm_s_own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM sets the rank to 0 in engines that stand alone, and counts them on."""
    parallel = ParallelConfig()
    parallel.data_parallel_index = 3  # as EngineCoreProc does in the process of an engine
    parallel.reconfigure_for_independent_dp_rank()
    assert parallel.data_parallel_rank == 0
    names = SimpleNamespace(served_model_name="m")
    config = SimpleNamespace(model_config=names, parallel_config=parallel)
    monkeypatch.setattr("vllm.distributed.get_pp_group", lambda: SimpleNamespace(rank_in_group=1))
    assert exporter.teller(config, 1.0, "i").labels == {"model_name": "m", "engine": "3", "stage": "1"}


@pytest.mark.parametrize("several", [False, True])
def test_a_scrape_finds_the_metrics_once_with_one_api_server_and_with_several(
    several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own routes: with several servers /metrics gathers what all of them have written into a new registry."""
    if several:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    plan, app = make_plan(), FastAPI()
    writer(plan).tell()
    for _ in range(2):
        collector.expose()
    attach_router(app)
    for path in ("/metrics", "/metrics/"):
        for _ in range(2):
            assert TestClient(app).get(path).text.count("# TYPE lynx_moe_steps_total") == 1


def test_drafts_are_told_by_depth_and_a_drafter_s_layers_under_names_of_their_own() -> None:
    plan = make_plan(num_drafts=10, verify="remap")
    plan.verified.add(SimpleNamespace(**{TOLD: [(10, 4), (3, 0)]}))
    one = np.ones(1, dtype=int)
    plan.rows.fill(one > 0, 4 * one, None, plan.requests.asked, 3 * one)  # exact
    plan.begin_step()
    plan.rows.fill(one > 0, 3 * one, None, Asked(verify=True), 2 * one)
    plan.begin_step()
    layers = plan.stats().layers
    drafter = DrafterPlan(options=Options(policy="vanilla"), shape=plan.shape, max_rows=64, device=plan.device)
    drafter.layers.append(Layer(name="draft_model.model.layers.0.mlp", spec=SPEC))
    drafter.seal()
    plan.drafter = drafter
    four = np.ones(4, dtype=int)
    drafter.follow(four > 0, four, 0 * four, four < 0, 1)
    for num_tokens in (8, 4):
        drafter.begin_pass(num_tokens, real=True)
        logits = torch.randn(num_tokens, 60)
        own = select(logits, SPEC)
        drafter.reroute(logits, own.weights, own.ids, 0)
    writer(plan).tell()
    seen = read()
    assert [seen.total("verified_rows_total", handling=one) for one in ("remappable", "exact")] == [3, 4]
    assert seen.total("drafts_total") == 2
    assert [seen.total("draft_tokens_total", depth=depth) for depth in ("1", "4", "9+")] == [2, 1, 2]
    assert [seen.total("draft_tokens_accepted_total", depth=depth) for depth in ("1", "4", "5", "9+")] == [1, 1, 0, 0]
    assert 0 < seen.total("draft_chance", depth="2") < seen.total("draft_chance", depth="1") < 1
    assert seen.total("drafter_passes_total", kind="decode") == 2
    before = sum(layer.decode.before for layer in drafter.stats().layers)
    assert seen.total("drafter_distinct_experts_before_total") == before > 0
    assert seen.total("drafter_distinct_experts_after_total") == before
    assert seen.total("drafter_layer_steps_total") == 2
    assert seen.label("drafter_policy_info", "policy") == "vanilla"
    own = sum(layer.decode.before for layer in layers)
    assert seen.total("distinct_experts_before_total", step="decode") == own  # the drafter's are not among them


def test_what_shadow_steps_measured_and_where_the_bound_stands() -> None:
    """By batch and by whose policy, each with its sum and its count; the prices that `max_kl` has come to."""
    plan = make_plan(max_kl=0.01)
    assert plan.shadows is None
    assert plan.bounded is None
    plan.shadows = Shadows(1)
    plan.aim(anew=True)
    assert plan.bounded is not None
    for batch, kl in ((16, 0.4), (12, 0.2), (3, 0.3)):
        sample = Sample(
            batch=batch,
            at=(1, 0, plan.bounded.bound.of(batch).trial, True),
            server=Effect(batch, kl, batch - 1, -0.5),
            request=Effect(2.0, 1.0, 2.0, 0.0) if batch == 3 else Effect(),
            above=Effect(batch, 0.0, batch, 0.0),
            seconds=0.25,
        )
        plan.hear(SimpleNamespace(**{SHADOWED: [sample]}))
    for _ in range(40):
        plan.hear(
            SimpleNamespace(**{SHADOWED: [replace(sample, batch=16, at=(1, 0, 1, True), above=Effect(16, 0, 16, 0))]})
        )
    writer(plan).tell()
    seen = read()
    assert seen.total("shadow_steps_total") == 43
    assert seen.total("shadow_seconds_total") == pytest.approx(43 * 0.25)
    assert seen.total("kl_nats_count", batch="2-4", policy="server") == 3
    assert seen.total("kl_nats_sum", batch="2-4", policy="request") == 1.0
    assert seen.total("kl_nats_sum", batch="9-16", policy="server") == pytest.approx(0.6 + 40 * 0.3)
    assert seen.total("top1_agreements_total", batch="2-4", policy="server") == 2
    assert seen.total("logprob_change_nats", batch="2-4", policy="server") == pytest.approx(-0.5 / 3)
    assert seen.total("max_kl") == 0.01
    assert seen.total("max_kl_price", batch="9-16") > 0
    assert seen.total("max_kl_price", batch="2-4") == 0
    assert seen.total("max_kl_changes_total", batch="9-16", direction="raise") == 1
    assert {"# TYPE lynx_moe_kl_nats summary", "# TYPE lynx_moe_max_kl_price gauge"} <= {*text().splitlines()}


def test_every_change_of_a_price_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    plan = make_plan(max_kl=0.01)
    plan.shadows = Shadows(1)
    plan.aim(anew=True)
    good = Effect(16.0, 0.0, 16.0, 0.0)
    sample = Sample(batch=16, at=(1, 0, 1, True), server=good, request=Effect(), above=good, seconds=0.0)
    with caplog.at_level(logging.INFO, logger="vllm.lynx_moe"):
        for _ in range(70):
            plan.hear(SimpleNamespace(**{SHADOWED: [sample]}))
    lines = [record.getMessage() for record in caplog.records if "max_kl" in record.getMessage()]
    assert lines == [
        "lynx_moe: max_kl 0.01: steps of 9-16 rows ask 1 instead of 0: 0 nats at the most in 256 rows of trials"
    ]
