"""A real server with tuned settings and a key: what acts in it, and `lynx-moe load` on it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import running
from openai import OpenAI

from lynx_moe.control.tuned import Tuned
from lynx_moe.engines.shared.switching import Switch
from lynx_moe.lab.load import batches, measure
from lynx_moe.lab.load.server import Server
from lynx_moe.lab.shared import lines
from lynx_moe.testbed import path

KEY = "open-sesame"
SHADOW = {
    "lynx_moe": {"shadow": 0.5, "metrics_every": 0.2}
}  # with KL measured, gauges below 0 stand among the counters


TUNED = Tuned(model={"experts": 64}, max_kl=0.01, batches={"1": "vanilla", "2-4": "priced:price=0.3"})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("server")
    (folder / "tuned.json").write_text(json.dumps(TUNED.told()))
    args = ("--tuned", str(folder / "tuned.json"), "--api-key", KEY, "--additional-config", json.dumps(SHADOW))
    with running.server(folder / "log.txt", running.OURS, str(path("qwen3-moe")), *args) as url:
        yield url


def test_a_server_acts_as_it_was_tuned(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    client, server = OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0), Server(url, settle=0)

    def ask(number: int) -> str:
        given = {"max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}
        return client.completions.create(model="testbed", prompt=f"copy {number}", **given).choices[0].text

    def steps() -> dict[str, tuple[str, int]]:
        told = json.loads(server.ask("/lynx_moe/policy"))
        assert told["policy"] == "tuned"
        return {one["batch"]: (one["policy"], one["steps"]) for one in told["tuned"]["batches"]}

    assert ask(0)
    alone = steps()
    assert alone["1"][0] == "vanilla"
    assert alone["1"][1] > 30
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(4)))
    together = steps()["2-4"]
    assert together[0] == "priced:price=0.3"
    assert together[1] > alone["2-4"][1]


def test_each_run_is_counted_by_itself_and_all_requests_are_answered(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Switching the policy ends the tuned settings. An objective that stands is off meanwhile, then on again."""
    model, rows = str(path("qwen3-moe")), []
    for number in range(8):
        rows.append({"timestamp": 10 * number, "input_length": 512, "output_length": 1000, "hash_ids": [number]})
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    settings = measure.Settings(
        model=model,
        trace=trace,
        policies=("vanilla", "priced:price=0.3"),
        rates=(100.0,),
        rounds=1,
        requests=8,
        prompt_scale=0.05,
        answer_scale=0.03,
        url=url,
    )
    server, mine = Server(url, settle=0), {"slo_tpot_ms": 500.0}  # an objective that asks for no price at all
    server.switch(Switch(policy="priced:price=0.2", goals=mine))
    whole = measure.measure(settings, tmp_path / "out" / "load.jsonl", lambda text: None)
    after = json.loads(server.ask("/lynx_moe/policy"))
    assert (after["policy"], after["slo_tpot_ms"]) == ("priced:price=0.2", 500.0)
    server.switch(Switch(goals={"slo_tpot_ms": None}))
    assert lines.load(tmp_path / "out" / "load.jsonl", "load")["results"] == whole["results"]
    assert [one["policy"] for one in whole["results"]] == list(settings.policies)
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


def test_batches_of_one_size_are_measured_policies_in_turns(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    server, policies, said = Server(url, settle=0.7), ("vanilla", "priced:price=0.3"), []
    found = batches.quality(server, policies, 2, 14, said.append)
    base, priced = found["summary"]
    assert base["n"] == priced["n"] == 28
    assert base["exact_match"] > 0.8
    assert priced["after"] < 0.8 * base["after"]
    assert base["after"] == base["before"] > 8
    found = batches.speed(server, policies, [1, 4], 2, 8, said.append)
    assert [(one["batch"], one["round"], one["policy"]) for one in found["samples"]] == [
        (batch, number, policy)
        for batch in (1, 4)
        for number in (1, 2)
        for policy in (policies if number == 2 else policies[::-1])
    ]
    assert all(one["tpot_ms"] > 0 for one in found["samples"])
    alone, together = (next(s for s in found["samples"] if s["batch"] == batch) for batch in (1, 4))
    assert alone["after"] is None
    assert 8 < together["after"] < 32
    with pytest.raises(ValueError, match=r"answers 400: .*max_tokens"):
        batches.speed(server, policies, [1], 1, 10_000, said.append)
