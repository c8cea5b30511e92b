"""A run second by second: what is taken from /metrics, and its picture."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.load import timeline
from lynx_moe.lab.load.arm import Arm
from lynx_moe.lab.shared import lines

LABELS = 'model_name="m",engine="0",stage="0"'


def exposition(steps: int, running: int, tokens: int, seconds: float, **gauges: str) -> str:
    objective = [f"lynx_moe_slo_tpot_seconds{{{LABELS}}} 0.03"] if "slo_share" in gauges else []
    ours = [
        *objective,
        f"lynx_moe_drafts_total{{{LABELS}}} 0",
        *(f'lynx_moe_{name}{{{LABELS},batch="9-16"}} {value}' for name, value in gauges.items()),
    ]
    own = [
        f'vllm:iteration_tokens_total_count{{engine="0"}} {steps}',
        f'vllm:num_requests_running{{engine="0"}} {running}',
        f'vllm:inter_token_latency_seconds_sum{{engine="0"}} {seconds}',
        f'vllm:inter_token_latency_seconds_count{{engine="0"}} {tokens}',
        'vllm:inter_token_latency_seconds_bucket{engine="0",le="1"} 99',
    ]
    return "\n".join([*ours, *own, ""])


def looked(name: str, **gauges: str) -> list[dict[str, Any]]:
    seen = timeline.Timeline("localhost:1", Arm.of(name))
    assert seen.address == "http://localhost:1/metrics"
    seen.look(exposition(100, 0, 50, 1.0), 10.0)
    seen.look(exposition(100, 0, 50, 1.0), 11.0)  # nobody is there yet
    seen.look(exposition(110, 12, 170, 4.0, **gauges), 12.0)
    seen.look(exposition(110, 12, 170, 4.0, **gauges), 13.5)
    return seen.points


def test_seconds_are_counted_from_the_first_request_on() -> None:
    first, second = looked("priced:price=0.1")
    assert first == {"second": 0.0, "running": 12, "batch": 12.0, "price": 0.1, "tpot_ms": 25.0}
    assert second == {"second": 1.5, "running": 12, "batch": 0.0, "price": None, "tpot_ms": None}


@pytest.mark.parametrize(
    ("name", "gauges", "price"),
    [
        ("vanilla", {}, 0.0),
        ("priced:price=0.1@slo_tpot_ms=30", {"slo_share": "0.25"}, 0.025),
        ("priced:price=0.1@slo_tpot_ms=30", {"slo_share": "0"}, 0.0),
        ("priced@max_kl=0.01", {"max_kl_price": "0.4"}, 0.4),
        ("priced@max_kl=0.01,slo_tpot_ms=30", {"max_kl_price": "0.4", "slo_share": "0.5"}, 0.2),
        ("lynx@slo_tpot_ms=30", {"slo_share": "1"}, None),
    ],
)
def test_the_price_is_the_share_that_an_objective_asks_of_what_a_bound_allows(
    name: str, gauges: dict[str, str], price: float | None
) -> None:
    assert looked(name, **gauges)[0]["price"] == pytest.approx(price)


def test_points_are_kept_beside_those_of_earlier_runs_and_drawn(tmp_path: Path, monkeypatch: Any) -> None:
    texts = iter([exposition(10 * n, 12, 120 * n, 0.3 * n) for n in range(1, 100)])
    monkeypatch.setattr(timeline, "EVERY", 0.01)
    monkeypatch.setattr(timeline, "fetch", lambda address, timeout: next(texts))
    path, settings = tmp_path / "timeline.jsonl", {"model": "org/m", "trace": "t.jsonl"}
    for policy in ("vanilla", "priced@slo_tpot_ms=30"):
        which = {"server": "", "round": 1, "rate": 1.0, "policy": policy}
        with timeline.kept(path, settings, "http://x", Arm.of(policy), which):
            timeline.time.sleep(0.2)
    record = lines.load(path, timeline.KIND)
    assert {one["policy"] for one in record["results"]} == {"vanilla", "priced@slo_tpot_ms=30"}
    assert {one["batch"] for one in record["results"]} == {12.0}
    printed = CliRunner().invoke(app, ["plot", str(path)])
    assert printed.exit_code == 0, printed.output
    assert path.with_suffix(".png").stat().st_size > 10_000
    with timeline.kept(None, settings, "http://x", Arm.of("lynx"), {}):
        pass
    with (
        pytest.raises(ValueError, match="was made with trace"),
        timeline.kept(path, settings | {"trace": "u"}, "", *(None, None)),
    ):  # type: ignore[arg-type]
        pass
