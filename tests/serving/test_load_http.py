"""`lynx-moe load` on a real server that runs already, with a key and a name of its own."""

import json
from pathlib import Path

import pytest
import running

from lynx_moe.lab.load import measure
from lynx_moe.lab.shared import lines
from lynx_moe.testbed import path

KEY = "open-sesame"
SHADOW = {"lynx_moe": {"shadow": 0.5}}  # with KL measured, gauges below 0 stand among the counters


def test_each_run_is_counted_by_itself_and_all_requests_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = str(path("qwen3-moe")), []
    for number in range(8):
        rows.append({"timestamp": 10 * number, "input_length": 512, "output_length": 1000, "hash_ids": [number]})
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    args = ("--api-key", KEY, "--additional-config", json.dumps(SHADOW))
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with running.server(tmp_path / "log.txt", running.OURS, model, *args) as url:
        settings = measure.Settings(
            model=model,
            trace=trace,
            policies=("vanilla", "priced:price=0.3"),
            rates=(100.0,),
            rounds=2,
            requests=8,
            prompt_scale=0.05,
            answer_scale=0.03,
            url=url,
        )
        whole = measure.measure(settings, tmp_path / "out" / "load.jsonl", lambda text: None)
    assert lines.load(tmp_path / "out" / "load.jsonl", "load")["results"] == whole["results"]
    assert [one["policy"] for one in whole["results"]] == [*settings.policies, *reversed(settings.policies)]
    for one in whole["results"]:
        assert (one["prompt_tokens"], one["answer_tokens"]) == (8 * 26, 8 * 30)
        assert len(one["requests"]) == 8
        assert not one["cold"]  # the server does not let its cache be emptied
        if one["policy"] == "vanilla":
            assert one["after"] == one["before"] > 8
        else:
            assert one["after"] < 0.8 * one["before"]
            assert one["kl"] > 0
            assert 0 < one["kl_rows"] < 8 * 30
