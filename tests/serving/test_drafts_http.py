"""A real server that drafts for its requests and verifies by `remap`: who asks what, what is told and refused."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import running
from openai import BadRequestError, OpenAI

from lynx_moe.lab.watch.scrape import scrape
from lynx_moe.testbed import path, tasks

ITEMS = [item for task in tasks.TASKS for item in tasks.test_items(task, 2, seed=3)]
MODEL, DRAFTER = str(path("qwen3-moe")), str(path("draft"))
SPECULATION = json.dumps({"method": "draft_model", "model": DRAFTER, "num_speculative_tokens": 3})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    args = ("--policy", "oea:k0=2", "--verify", "remap", "--speculative-config", SPECULATION)
    with running.server(tmp_path_factory.mktemp("server") / "log.txt", running.OURS, MODEL, *args) as url:
        yield url


def ask(url: str, prompt: str, **body: Any) -> str:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    given = {"model": "testbed", "prompt": prompt, "max_tokens": 64, "temperature": 0}
    return str(client.completions.create(**given, extra_body=body).choices[0].text)


def test_requests_choose_beside_each_other_and_the_metrics_tell(url: str) -> None:
    wishes: list[dict[str, str]] = [{"lynx_moe": "exact"}, {}, {"lynx_moe_verify": "exact"}]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(ask, url, item.prompt, vllm_xargs=wishes[n % 3]) for n, item in enumerate(ITEMS)]
        answers = [job.result() for job in jobs]
    right = [answer.strip() == item.answer.strip() for answer, item in zip(answers, ITEMS, strict=True)]
    assert sum(right[::3]) >= len(right[::3]) - 2  # exact ones: the model solves 97 %
    told = json.load(urllib.request.urlopen(f"{url}/lynx_moe/policy"))
    assert (told["policy"], told["verify"]) == ("oea:k0=2", "remap")
    assert running.eventually(lambda: scrape(url).total("drafts_total")) > 0
    page = urllib.request.urlopen(f"{url}/metrics").read().decode()
    rows = {kind: float(number) for kind, number in re.findall(
        r'^lynx_moe_verified_rows_total\{.*handling="(\w+)".*\} (\S+)$', page, re.M)}  # fmt: skip
    assert rows["exact"] > 0
    assert rows["remappable"] > 0
    once = scrape(url)  # both of one moment
    drafted, accepted = (once.total(f"draft_tokens_{name}total") for name in ("", "accepted_"))
    assert 0 < accepted < drafted


def test_a_grammar_holds_over_drafts(url: str) -> None:
    for wish in ({"lynx_moe": "exact"}, {}):
        text = ask(url, ITEMS[0].prompt, structured_outputs={"regex": "[ab]{5}"}, vllm_xargs=wish)
        assert re.fullmatch("[ab]{5}", text)


def test_a_misspelt_wish_answers_400_in_one_line(url: str) -> None:
    with pytest.raises(BadRequestError, match="lynx_moe_verify: 'remp' must be 'exact' or 'remap'") as caught:
        ask(url, "a", vllm_xargs={"lynx_moe_verify": "remp"})
    assert "\n" not in caught.value.body["message"]  # type: ignore[index,call-overload]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--verify", "remp"), "verify='remp' must be one of 'exact', 'remap', 'draft'"),
        (("--verify", "draft"), "drafts, and has no MoE layer to remap"),
    ],
)
def test_what_cannot_be_verified_so_ends_a_server_at_its_start(args: tuple[str, ...], says: str) -> None:
    line = [sys.executable, "-m", *running.OURS, MODEL, "--speculative-config", SPECULATION, *args, "--port", "0"]
    line += ["--enforce-eager", "--max-model-len", "512"]
    assert says in ended(line)


def test_a_drafter_of_another_vocabulary_ends_a_server_before_anything_is_loaded(tmp_path: Path) -> None:
    other = shutil.copytree(DRAFTER, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = {token: number + 1 for token, number in tokenizer["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    given = json.dumps({"method": "draft_model", "model": str(other), "num_speculative_tokens": 3})
    said = ended([sys.executable, "-m", *running.OURS, MODEL, "--speculative-config", given, "--port", "0"])
    assert "cannot draft for" in said
    assert "use a drafter with the same tokenizer" in said


def ended(line: list[str]) -> str:
    """The one line with which a server ended."""
    done = subprocess.run(line, env=running.ENV, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    (said,) = (text for text in (done.stdout + done.stderr).splitlines() if text.startswith("lynx-moe: error: "))
    return said
