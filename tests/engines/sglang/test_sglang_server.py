"""`lynx-moe serve --engine sglang`: a real server with concurrent clients, wishes, switches, streams and aborts."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import running
import sglang_here

from lynx_moe.lab.watch.scrape import scrape
from lynx_moe.testbed import path, tasks

pytestmark = pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT)
POLICY = "lynx:alpha=3,beta=2"
ITEMS = [item for task in tasks.TASKS for item in tasks.test_items(task, 2, seed=3)]
MIXED = ["--enable-mixed-chunk", "--chunked-prefill-size", "32", "--max-running-requests", "32"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    given = ["--engine", "sglang", "--policy", POLICY, *sglang_here.flags(), *MIXED, "--log-level", "warning"]
    env = {"LYNX_MOE_SGLANG": json.dumps({"log_every": 1, "metrics_every": 0.2})}
    with running.serving(
        log, running.OURS, str(path("qwen3-moe")), *given, env={**os.environ, **env}, end=signal.SIGTERM
    ) as url:
        yield url


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def generate(url: str, prompt: str, wish: Any = None, length: int = 48, **given: Any) -> Any:
    params = {"temperature": 0, "max_new_tokens": length} | given
    if wish is not None:
        params["custom_params"] = {"lynx_moe": wish}
    return post(f"{url}/generate", {"text": prompt, "sampling_params": params})


def policy(url: str, spec: str | None = None) -> Any:
    if spec is not None:
        return post(f"{url}/lynx_moe/policy", {"policy": spec})
    with urllib.request.urlopen(f"{url}/lynx_moe/policy", timeout=60) as answer:
        return json.load(answer)


def refused(call: Any) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        call()
    return error.value.code, error.value.read().decode()


def test_concurrent_clients_get_right_answers_while_experts_are_shared(server: str) -> None:
    wishes = [None, "exact", "fast", 0.05] * (len(ITEMS) // 4 + 1)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda item, wish: generate(server, item.prompt, wish), ITEMS, wishes))
    right = sum(
        answer["text"].strip().startswith(item.answer.strip()) for item, answer in zip(ITEMS, answers, strict=True)
    )
    assert right / len(ITEMS) > 0.6, f"{right} of {len(ITEMS)}"
    stats = policy(server)["stats"]
    assert stats["steps"]["mixed"] > 0, stats["steps"]
    decode = [layer["decode"] for layer in stats["layers"]]
    assert sum(one["after"] for one in decode) < sum(one["before"] for one in decode)


def test_exact_requests_answer_alike_whatever_runs_beside_them(server: str) -> None:
    alone = [generate(server, item.prompt, "exact")["output_ids"] for item in ITEMS[:4]]
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(generate, server, item.prompt, "fast") for item in ITEMS[4:12]]
        crowded = list(pool.map(lambda item: generate(server, item.prompt, "exact")["output_ids"], ITEMS[:4]))
        assert all(other.result()["output_ids"] for other in others)
    assert crowded == alone


def test_chats_and_streams_carry_wishes(server: str) -> None:
    body = {"model": "testbed", "prompt": ITEMS[0].prompt, "max_tokens": 16, "temperature": 0, "stream": True}
    whole = generate(server, ITEMS[0].prompt, "exact", 16)["text"]
    request = urllib.request.Request(
        f"{server}/v1/completions",
        json.dumps({**body, "custom_params": {"lynx_moe": "exact"}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as stream:
        lines = [line.decode().strip().removeprefix("data: ") for line in stream if line.startswith(b"data: {")]
    assert len(lines) > 4
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines) == whole
    code, text = refused(
        lambda: post(f"{server}/v1/completions", {**body, "stream": False, "custom_params": {"lynx_moe": "nonsense"}})
    )
    assert code == 400
    assert "allowed: exact, balanced, fast" in text


def test_a_client_that_leaves_disturbs_nobody(server: str) -> None:
    body = json.dumps(
        {
            "text": ITEMS[0].prompt,
            "stream": True,
            "sampling_params": {"max_new_tokens": 400, "ignore_eos": True, "custom_params": {"lynx_moe": "fast"}},
        }
    )
    request = urllib.request.Request(f"{server}/generate", body.encode(), {"Content-Type": "application/json"})
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(generate, server, item.prompt, "exact") for item in ITEMS[:3]]
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
        answers = [other.result()["output_ids"] for other in others]
    assert answers == [generate(server, item.prompt, "exact")["output_ids"] for item in ITEMS[:3]]


def test_structured_output_is_what_it_should_be(server: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(generate, server, item.prompt, "fast") for item in ITEMS[:6]]
        answers = [generate(server, ITEMS[0].prompt, wish, 16, regex="[0-9]{3}")["text"] for wish in ("exact", "fast")]
        assert all(other.result() for other in others)
    assert all(re.fullmatch("[0-9]{3}", answer.strip()) for answer in answers), answers


def test_the_policy_is_switched_while_requests_run(server: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        running_ = [pool.submit(generate, server, item.prompt, None, 64, ignore_eos=True) for item in ITEMS[:8]]
        assert policy(server, "priced")["policy"] == "priced"
        code, text = refused(lambda: policy(server, "lynxx"))
        assert (code, "unknown policy" in text) == (400, True)
        assert refused(lambda: post(f"{server}/lynx_moe/policy", {"spec": "lynx"}))[0] == 400
        assert all(len(one.result()["output_ids"]) == 64 for one in running_)
    assert policy(server)["policy"] == "priced"
    assert policy(server, POLICY)["policy"] == POLICY


def test_metrics_have_their_names_and_top_shows_them(server: str) -> None:
    generate(server, ITEMS[0].prompt)
    seen = running.eventually(lambda: scrape(server).total("steps_total", kind="decode"))
    assert seen > 0
    found = scrape(server)
    assert found.total("layers", routing="policy") == 4
    assert found.total("rows_total", handling="exact") > 0
    before, after = (found.total(f"distinct_experts_{when}_total", step="decode") for when in ("before", "after"))
    assert 0 < after < before
    assert found.total("policy_changes_total", by="operator") >= 2
    line = [sys.executable, "-m", "lynx_moe.cli", "top", server, "--once"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert POLICY in done.stdout
    assert "experts" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--policy", "lynxx"], "unknown policy 'lynxx'"),
        (["--policy", "oea:k0=9"], "k0=9"),
        (["--policy", "lynx", "--max-kl", "0.01"], "--max-kl is known on vLLM only"),
        (["--policy", "lynx", "--dp-size", "2"], "--dp-size 2"),
        (["--policy", "lynx", "--verify", "remap"], "verify='remap' is about drafts"),
    ],
)
def test_what_cannot_be_served_ends_in_one_line(given: list[str], said: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", *running.OURS, str(path("qwen3-moe")), "--engine", "sglang", *given]
    done = subprocess.run([*line, *sglang_here.flags()], capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr[-2000:]
    assert last.startswith("lynx-moe: error: ")
    assert said in last
    assert done.stderr.count("lynx-moe: error:") == 1
