"""vLLM's own server of two data-parallel engines under the default: shadow steps, pauses while all idle, a switch."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import running
from openai import OpenAI

from lynx_moe.lab.watch import control
from lynx_moe.lab.watch.scrape import scrape
from lynx_moe.testbed import path, tasks

PROMPTS = [item.prompt for task in tasks.TASKS for item in tasks.test_items(task, 1, seed=3)]
SHIMS = "parallel_worker.Probe"  # collectives, and experts on ranks, that vLLM's CPU build lacks
ENGINES = ("0", "1")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    args = ("--data-parallel-size", "2", "--worker-extension-cls", SHIMS, "--max-num-seqs", "16")
    env = {"PYTHONPATH": os.pathsep.join([str(Path(running.__file__).parent), os.environ.get("PYTHONPATH", "")])}
    log = tmp_path_factory.mktemp("ranks") / "log.txt"
    with running.server(log, running.OURS, str(path("qwen3-moe")), *args, env=env) as url:
        yield url


def ask(url: str, prompt: str, **wish: str) -> str:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    given: dict[str, Any] = {"model": "testbed", "prompt": prompt, "max_tokens": 24, "temperature": 0}
    body = {"ignore_eos": True, "vllm_xargs": wish}
    return str(client.completions.create(**given, extra_body=body).choices[0].text)


def eventually(url: str, name: str, engine: str) -> float:
    return float(running.eventually(lambda: scrape(url).total(name, engine=engine)))


def test_engines_pass_through_pauses_and_shadow_steps_together(url: str) -> None:
    """One engine alone, both, a pause, and both again: nobody waits for ever, and both make the same shadow steps."""
    told = control.told(url)
    assert (told["policy"], told["back_off_kl"]) == ("priced:price=0.015", 0.01)
    alone = ask(url, PROMPTS[0], lynx_moe="exact")  # the other engine idles
    for pause in (0.0, 3.0):
        time.sleep(pause)
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            answers = list(pool.map(lambda prompt: ask(url, prompt), PROMPTS))
        assert all(answers)
    assert ask(url, PROMPTS[0], lynx_moe="exact") == alone

    for name in ("shadow_steps_total", "kl_nats_count"):
        for engine in ENGINES:
            assert eventually(url, name, engine) > 0


def test_a_bound_is_switched_on_for_both(url: str) -> None:
    control.ask(url, "/lynx_moe/policy", b'{"max_kl": 0.02}')
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert all(pool.map(lambda prompt: ask(url, prompt), PROMPTS))
    for engine in ENGINES:
        assert eventually(url, "max_kl", engine) == 0.02
