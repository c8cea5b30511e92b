"""Frames of `lynx-moe top` from given metrics, and the dashboard's JSON against Grafana's own types."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from places import REFERENCE
from rich.console import Console

from lynx_moe.engines.shared.families import FAMILIES, GROUPS, groups
from lynx_moe.lab.watch import dashboard
from lynx_moe.lab.watch.frame import frame
from lynx_moe.lab.watch.scrape import Scrape, parse, scrape

COMMON = 'model_name="m",engine="0",stage="0"'


def metrics(steps: float, before: float, after: float, rung: int = 0) -> str:
    """An exposition of one layer group after so many decode steps, with means before and after."""
    lines = [
        f'lynx_moe_steps_total{{{COMMON},kind="decode"}} {steps}',
        f'lynx_moe_layer_steps_total{{{COMMON},layers="00",step="decode"}} {steps}',
        f'lynx_moe_distinct_experts_before_total{{{COMMON},layers="00",step="decode"}} {before * steps}',
        f'lynx_moe_distinct_experts_after_total{{{COMMON},layers="00",step="decode"}} {after * steps}',
        f'lynx_moe_policy_info{{{COMMON},policy="{"vanilla" if rung else "lynx"}",asked="lynx"}} 1',
        f"lynx_moe_guard_enabled{{{COMMON}}} 1",
        f"lynx_moe_guard_rung{{{COMMON}}} {rung}",
        f"lynx_moe_guard_last_rung{{{COMMON}}} 2",
        f'lynx_moe_guard_bound{{{COMMON},figure="mass_lost"}} 0.1',
        f'lynx_moe_guard_figure{{{COMMON},figure="mass_lost",rung="now"}} 0.031',
        f'lynx_moe_guard_figure{{{COMMON},figure="mass_lost",rung="above"}} 0.25',
    ]
    return "\n".join(["# HELP other x", "# TYPE other gauge", "other 1", *lines]) + "\n"


def shown(now: Scrape, earlier: Scrape | None = None) -> str:
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(frame(now, earlier, "http://h:1"))
    return console.export_text()


def test_a_frame_shows_means_since_the_last_one() -> None:
    earlier, now = Scrape(parse(metrics(100, 40, 40)), 10.0), Scrape(parse(metrics(300, 44, 24)), 20.0)
    text = shown(now, earlier)
    assert "46.0" in text  # (300 * 44 - 100 * 40) / 200
    assert "16.0" in text
    assert "-65 %" in text
    assert "20.0/s decode" in text
    whole = shown(now)
    assert "44.0" in whole
    assert "24.0" in whole
    assert "300 decode" in whole


def test_a_frame_without_steps_or_after_a_restart_says_so() -> None:
    now = Scrape(parse(metrics(100, 40, 30)), 20.0)
    assert "No decode step of two rows or more in the last 10 s" in shown(now, Scrape(now.samples, 10.0))
    restarted = shown(Scrape(parse(metrics(10, 40, 30)), 30.0), now)
    assert "40.0" in restarted


def test_a_frame_shows_where_the_guard_stands() -> None:
    calm, backed_off = shown(Scrape(parse(metrics(1, 4, 3)), 0.0)), shown(Scrape(parse(metrics(1, 4, 3, rung=2)), 0.0))
    assert "as asked, rung 0 of 2" in calm
    assert "mass_lost 0.031 of 0.1 allowed" in calm
    assert "instead of lynx: the guard has backed off" in backed_off
    assert "vanilla, rung 2 of 2" in backed_off
    assert "0.250 one rung up" in backed_off


@pytest.fixture
def answering() -> Iterator[Any]:
    """A function that starts a server whose /metrics is the given text, and returns its address."""
    servers = []

    def start(text: str) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/metrics" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                """Silence."""

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def test_every_way_to_name_the_address_works(answering: Any) -> None:
    address = answering(metrics(1, 4, 3))
    for url in (address, f"http://{address}/", f"http://{address}/metrics"):
        assert scrape(url).total("steps_total") == 1


def test_what_cannot_be_shown_is_said_in_one_line(answering: Any) -> None:
    address = answering("vllm:num_requests_running 1\n")
    with pytest.raises(ValueError, match="has no metrics of lynx-moe: the server runs without a policy"):
        scrape(address)
    with pytest.raises(ValueError, match="answers 404 Not Found; is it the address of a vLLM server"):
        scrape(f"{address}/elsewhere")


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 48, 94])
def test_layer_groups_are_few_and_cover_every_layer_once(count: int) -> None:
    numbers = [3 + 2 * place for place in range(count)]
    found = groups(numbers)
    assert len(found) == min(count, GROUPS)
    assert [place for _, members in found for place in members] == list(range(count))
    assert len({label for label, _ in found}) == len(found)
    if count:
        sizes = [len(members) for _, members in found]
        assert max(sizes) - min(sizes) <= 1
        assert found[0][0].startswith("03")


def test_names_follow_prometheus_conventions() -> None:
    for name, (kind, meaning, labels) in FAMILIES.items():
        assert name.startswith("lynx_moe_")
        assert not name.endswith(("_total", "_count", "_sum"))
        assert kind in ("counter", "gauge", "summary")
        assert meaning.endswith(".")
        assert all(label.isidentifier() for label in labels)


def test_the_dashboard_loads_into_grafana_s_own_types_without_a_loss() -> None:
    register_default_plugins()
    made = dashboard.dashboard()
    loaded = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(made)))
    assert not missing(made, loaded), missing(made, loaded)
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def missing(given: Any, loaded: Any, where: str = "") -> list[str]:
    """Paths of what a value holds and the loaded one does not."""
    if isinstance(given, dict):
        return [
            path
            for key, value in given.items()
            for path in (missing(value, loaded[key], f"{where}.{key}") if key in loaded else [f"{where}.{key}"])
        ]
    if isinstance(given, list):
        if len(given) != len(loaded):
            return [where]
        return [
            p
            for place, (a, b) in enumerate(zip(given, loaded, strict=True))
            for p in missing(a, b, f"{where}[{place}]")
        ]
    return [] if given == loaded else [where]


def test_panels_do_not_overlap_and_fill_the_width() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard.dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_the_file_in_docs_is_what_the_command_prints() -> None:
    assert (REFERENCE / "grafana.json").read_text() == dashboard.text()
