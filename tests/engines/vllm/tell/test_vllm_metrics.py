"""From a plan's counts to the text of /metrics, without a server: the workers' files, and what is made of them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import Plan, activate
from lynx_moe.engines.vllm.tell import collector, exporter
from lynx_moe.lab.watch.scrape import Scrape, parse
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec, select

SPEC = RouterSpec(num_experts=60, top_k=4)
LABELS = {"model_name": "m", "engine": "0", "stage": "0"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(exporter.DIRECTORY, str(tmp_path))
    return tmp_path


def make_plan(**options: object) -> Plan:
    """Three layers, of which the last keeps its own routing, after a decode step of 8 rows and a prompt of 5."""
    shape = ModelShape(model_type="tiny", num_layers=3, num_experts=60, top_k=4, name="tiny")
    given = Options(policy="lynx:alpha=0.3,beta=1", **options)  # type: ignore[arg-type]
    plan = Plan(options=given, shape=shape, max_rows=64, device=torch.device("cpu"))
    plan.layers += [Layer(name=f"model.layers.{number}.mlp", spec=SPEC) for number in range(3)]
    plan.seal()
    plan.bypassed["model.layers.2.mlp"] = "a reason"
    plan.has_begun = True
    for past_prompt, scheduled in (([True] * 8, [1] * 8), ([False], [5])):
        plan.rows.fill(np.array(past_prompt), np.array(scheduled))
        plan.begin_step()
        for layer in range(2):
            logits = 2 * torch.randn(sum(scheduled), 60)
            own = select(logits, SPEC)
            plan.reroute(logits, own.weights, own.ids, layer)
    return plan


def text() -> str:
    registry = CollectorRegistry()
    registry.register(collector.Workers())
    return generate_latest(registry).decode()


def read() -> Scrape:
    return Scrape(parse(text()), 0.0)


def test_the_text_says_what_the_plan_counted(folder: Path) -> None:
    plan = make_plan()
    exporter.write(plan, LABELS, folder / "1.json")
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


def test_changes_are_counted_by_who_made_them(folder: Path) -> None:
    plan = make_plan()
    plan.set_policy("oea:k0=3")
    exporter.write(plan, LABELS, folder / "1.json")
    assert read().total("policy_changes_total", by="operator") == 1
    assert read().total("policy_changes_total", by="guard") == 0
    assert read().label("policy_info", "policy") == "oea:k0=3"


def test_engines_and_stages_stand_side_by_side_and_what_is_gone_is_left_out(folder: Path) -> None:
    plan = make_plan()
    for number, labels in enumerate((LABELS, LABELS | {"engine": "1"}, LABELS | {"stage": "1"})):
        exporter.write(plan, labels, folder / f"{number}.json")
    assert read().total("steps_total") == 3 * 2
    assert read().total("steps_total", engine="0", stage="0") == 2
    for file in folder.glob("*.json"):
        file.unlink()
    assert text() == ""


def test_the_thread_writes_while_its_plan_is_the_active_one_and_clears_up(folder: Path) -> None:
    plan = make_plan(metrics_every=0.01)
    exporter.start(plan, LABELS)
    assert eventually(lambda: len(list(folder.glob("*.json"))) == 1)
    plan.rows.fill(np.array([True, True]), np.array([1, 1]))
    plan.begin_step()
    assert eventually(lambda: read().total("steps_total", kind="decode") == 2)
    other = make_plan()
    activate(other)
    assert eventually(lambda: not list(folder.glob("*.json")))
    activate(plan)
    assert eventually(lambda: len(list(folder.glob("*.json"))) == 1)
    activate(other)
    del plan
    assert eventually(lambda: not list(folder.glob("*.json")))


def eventually(holds) -> bool:  # type: ignore[no-untyped-def]
    for _ in range(500):
        try:
            if holds():
                return True
        except (json.JSONDecodeError, FileNotFoundError):
            pass
        time.sleep(0.01)
    return False


def test_no_directory_and_no_interval_mean_no_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter.start(make_plan(metrics_every=0), LABELS)
    monkeypatch.delenv(exporter.DIRECTORY)
    exporter.start(make_plan(), LABELS)
    time.sleep(0.1)
    assert not list(folder.iterdir())


def test_a_registry_is_given_the_metrics_once(folder: Path) -> None:
    exporter.write(make_plan(), LABELS, folder / "1.json")
    registry = CollectorRegistry()
    for _ in range(2):
        assert collector._registry(lambda: registry) is registry
    assert generate_latest(registry).decode().count("# TYPE lynx_moe_steps_total") == 1
