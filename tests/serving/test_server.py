"""A real server, started as an operator would, asked by a real OpenAI client with concurrent requests."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import running
from openai import OpenAI

from lynx_moe.testbed import path, tasks

POLICY = "lynx:alpha=3,beta=2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Base URL and log file of `lynx-moe serve`, with flags of vLLM's own passed through."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = ("--additional-config", json.dumps({"lynx_moe": {"log_every": 1}}))
    with running.server(log, running.OURS, str(path("qwen3-moe")), "--policy", POLICY, *options) as url:
        yield url, log


def test_concurrent_clients_get_right_answers_while_experts_are_shared(server: tuple[str, Path]) -> None:
    url, log = server
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    items = [item for task in tasks.TASKS for item in tasks.test_items(task, 8, seed=3)]

    def ask(prompt: str) -> str:
        answer = client.completions.create(model="testbed", prompt=prompt, max_tokens=96, temperature=0)
        return answer.choices[0].text

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, [item.prompt for item in items]))
    right = sum(answer.strip() == item.answer.strip() for answer, item in zip(answers, items, strict=True))
    assert right / len(items) > 0.6, f"{right} of {len(items)}"
    pattern = r"lynx_moe: ([\d.]+) -> ([\d.]+) distinct experts per layer, (\d+) decode"
    lines: list[list[float]] = []
    for _ in range(20):  # a line is due every second in which there are steps, with the steps since the last line
        lines = [[float(number) for number in line] for line in re.findall(pattern, log.read_text())]
        if sum(steps for _, _, steps in lines) > 10:
            break
        time.sleep(1)
        ask(items[0].prompt)
    total = sum(steps for _, _, steps in lines)
    assert total > 10, log.read_text()[-3000:]
    before, after = (sum(line[i] * line[2] for line in lines) / total for i in (0, 1))
    assert after < 0.95 * before
    assert f"policy {POLICY} on 4 MoE layers" in log.read_text()


def test_a_streamed_answer_equals_the_whole_one(server: tuple[str, Path]) -> None:
    url, _ = server
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    item = tasks.test_items("code", 1)[0]
    whole = client.completions.create(model="testbed", prompt=item.prompt, max_tokens=64, temperature=0).choices[0].text
    parts = client.completions.create(model="testbed", prompt=item.prompt, max_tokens=64, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole
    assert whole.strip()
