"""What an operator sees of a real server over HTTP: /metrics, `lynx-moe top`, the dashboard's queries, the guard."""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families
from running import OURS
from running import server as running
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.shared.families import FAMILIES, WORKERS
from lynx_moe.lab.watch.dashboard import dashboard
from lynx_moe.lab.watch.scrape import Scrape, scrape
from lynx_moe.testbed import path, tasks

OPTIONS = ("draft", "verified", "max_kl", "slo", "tuned", "expert")  # that other servers have
NOT_HERE = tuple(f"lynx_moe_{name}" for name in OPTIONS)
HARMFUL = "random:num_keep=4"
GUARD = {
    "max_mass_lost": 0.2,
    "max_error": 0.2,
    "steps": 1,
    "layers": 1,
    "shadow_steps": 0.5,
    "window": 16,
    "ladder": [],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server under a harmful policy and a guard, that has answered requests until the guard backed off."""
    log = tmp_path_factory.mktemp("seeing") / "log.txt"
    options = [
        "--policy",
        HARMFUL,
        "--additional-config",
        json.dumps({"lynx_moe": {"guard": GUARD, "shadow": 0.5, "metrics_every": 0.2}}),
    ]
    with running(log, OURS, str(path("mixtral")), *options) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        prompts = [item.prompt for item in tasks.test_items("sort", 48, seed=3)]
        asked = {
            "model": "testbed",
            "max_tokens": 48,
            "extra_body": {"ignore_eos": True},
        }  # long enough to run together
        for _ in range(5):
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda p: client.completions.create(prompt=p, **asked), prompts))
            if "guard: " in log.read_text():
                break
        assert "guard: " in log.read_text()
        yield url


def until(url: str, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape of which something holds; the workers' numbers are a moment late."""
    for _ in range(50):
        seen = scrape(url)
        if holds(seen):
            return seen
        time.sleep(0.2)
    raise AssertionError(seen.samples)


def test_metrics_stand_beside_vllm_s_own_and_add_up(server: str) -> None:
    text = urllib.request.urlopen(f"{server}/metrics").read().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "vllm:num_requests_running" in families
    assert {name for name in FAMILIES if not name.startswith(NOT_HERE)} <= set(families)
    for name, family in ((name, FAMILIES[name]) for name in FAMILIES if name in families):
        assert (families[name].type, families[name].documentation) == (family.kind, family.text)
    assert [sample.value for sample in families[WORKERS].samples] == [1]
    assert {sample.labels["model_name"] for sample in families["lynx_moe_steps"].samples} == {"testbed"}
    seen = until(server, lambda s: s.total("steps_total", kind="decode") > 0)
    layers = seen.values("layer_steps_total", "layers")
    assert seen.total("layer_steps_total", step="decode") == len(layers) * seen.total("steps_total", kind="decode")
    assert 0 < seen.total("distinct_experts_after_total") < seen.total("distinct_experts_before_total")
    assert seen.total("rows_total", handling="remappable") > 0 < seen.total("rows_total", handling="bypassed")
    assert seen.total("rows_remapped_total") > 0 < seen.total("decision_seconds_sum")


def test_exact_requests_are_counted_as_such(server: str) -> None:
    before = scrape(server).total("rows_total", handling="exact")
    client = OpenAI(base_url=f"{server}/v1", api_key="none")

    def ask(_: int) -> None:
        client.completions.create(
            model="testbed", prompt="a b c", max_tokens=8, extra_body={"vllm_xargs": {"lynx_moe": "exact"}}
        )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    seen = until(server, lambda s: s.total("rows_total", handling="exact") > before)
    assert before < seen.total("rows_total", handling="exact") <= before + 4 * 8  # prompts are not counted with them


def test_the_guard_s_state_is_there(server: str) -> None:
    seen = until(server, lambda s: s.total("guard_changes_total", direction="back_off") >= 1)
    assert seen.total("policy_changes_total", by="guard") == seen.total("guard_changes_total")
    assert seen.label("policy_info", "asked") == HARMFUL
    expected = "vanilla" if seen.total("guard_rung") else HARMFUL
    assert seen.label("policy_info", "policy") == expected
    assert seen.total("guard_bound", figure="mass_lost") == GUARD["max_mass_lost"]
    assert seen.total("guard_samples_total", figure="mass_lost") >= 4
    assert seen.total("guard_seconds_total") > 0


def test_every_query_of_the_dashboard_asks_for_what_is_exported(server: str) -> None:
    names = set(scrape(server).samples)
    text = "\n".join(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    asked = set(re.findall(r"lynx_moe_\w+", text))
    assert len(asked) > 10
    assert {name for name in asked if not name.startswith(NOT_HERE)} <= names


def test_top_prints_one_frame(server: str) -> None:
    shown = CliRunner().invoke(app, ["top", server, "--once"], env={"COLUMNS": "110"})
    assert shown.exit_code == 0, shown.output
    words = (
        "testbed at http",
        "distinct experts per layer",
        "00 ",
        "█",
        "guard",
        "mass_lost",
        "decode",
        "µs per",
    )
    for word in words:
        assert word in shown.output, shown.output
