"""Prefill and decode apart over HTTP: plain `vllm serve` computes the prompts' KV, `lynx-moe serve` decodes from it."""

import json
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import running
import torch
from prometheus_client.parser import text_string_to_metric_families
from proxy import post, proxy
from safetensors.torch import load_file, save_file

from lynx_moe.lab.watch.scrape import scrape
from lynx_moe.testbed import path, tasks

BLOCK = 32
MODEL = str(path("qwen3-moe"))
ENV = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # two servers share the cores
LINES = [f"{item.prompt}{item.answer}" for item in tasks.test_items("recall", 100, seed=3)]
ASKED = [item.prompt for item in tasks.test_items("recall", 150, seed=3)[100:]]
PROMPTS = ["<eos><bos>".join((*LINES[2 * i : 2 * i + 2], asked)) for i, asked in enumerate(ASKED)]  # 3 or 4 blocks
NIXL = pytest.param("NixlConnector", marks=pytest.mark.skipif(not find_spec("nixl"), reason="nixl is not installed"))


@dataclass(frozen=True)
class Pair:
    """Two servers, a proxy before them, and where ExampleConnector keeps its files."""

    connector: str
    prefill: str
    decode: str
    proxy: str
    store: Path

    def handed_on(self, length: int) -> int:
        """How many of a prompt's tokens come from the prefill server. ExampleConnector stores the whole blocks of all
        but the last token, and looks for those of all but the last two."""
        if self.connector == "NixlConnector":
            return length
        return 0 if length % BLOCK == 1 else (length - 1) // BLOCK * BLOCK


@pytest.fixture(scope="module", params=["ExampleConnector", NIXL])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both start at the same time. The prefill server has no cache of its own, so that it computes what it is asked."""
    logs, store = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("store")
    connector = {"kv_connector": request.param, "kv_connector_extra_config": {"shared_storage_path": str(store)}}

    def start(role: str, command: tuple[str, str], *options: str) -> str:
        config = json.dumps({**connector, "kv_role": role})
        args = ("--block-size", str(BLOCK), "--kv-transfer-config", config, *options)
        env = {**ENV, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(running.free_port())}
        return stack.enter_context(running.server(logs / f"{role}.txt", command, MODEL, *args, env=env))

    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        prefill = pool.submit(start, "kv_producer", running.VLLMS, "--no-enable-prefix-caching")
        decode = pool.submit(start, "kv_consumer", running.OURS, "--policy", "lynx:alpha=0.3,beta=1")
        urls = prefill.result(), decode.result()
        ask(urls[1], LINES[-1:])  # vLLM's CPU build ends with an illegal instruction if its first step has one row
        yield Pair(request.param, *urls, stack.enter_context(proxy(*urls)), store)


def ask(url: str, prompts: Sequence[str], wishes: Sequence[str | None] = (None,)) -> tuple[list[str], list[int]]:
    """(answers, tokens of each prompt): 16 clients at a time, which ask for the wishes in turn."""

    def one(number: int) -> tuple[str, int]:
        wish = wishes[number % len(wishes)]
        body = {"model": "testbed", "prompt": prompts[number], "max_tokens": 40, "temperature": 0}
        status, answer = post(f"{url}/v1/completions", body | ({"vllm_xargs": {"lynx_moe": wish}} if wish else {}))
        assert status == 200, answer
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(one, range(len(prompts))))
    return [text for text, _ in answers], [length for _, length in answers]


def metrics(url: str) -> dict[tuple[str, ...], float]:
    """Every sample of a server, by its name and the value of its label `source`."""
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, sample.labels.get("source", "")): sample.value for sample in samples}


def prompt_tokens(url: str) -> dict[str, float]:
    """Prompt tokens of all requests so far, by where their KV came from."""
    name = "vllm:prompt_tokens_by_source_total"
    return {source: value for (found, source), value in metrics(url).items() if found == name}


def came(before: dict[str, float], url: str) -> tuple[float, float, float]:
    """(from the connector, computed here, from this server's own cache) since then."""
    now = prompt_tokens(url)
    return tuple(now[s] - before[s] for s in ("external_kv_transfer", "local_compute", "local_cache_hit"))  # type: ignore[return-value]


def plain(pair: Pair, prompts: Sequence[str]) -> list[str]:
    """What one plain server answers: the prefill server, which computes the prompts from the first token on."""
    shutil.rmtree(pair.store)
    pair.store.mkdir()
    before = prompt_tokens(pair.prefill)
    answers, lengths = ask(pair.prefill, prompts)
    assert came(before, pair.prefill) == (0, sum(lengths), 0)
    return answers


def test_exact_requests_through_the_pair_get_what_one_plain_server_answers(pair: Pair) -> None:
    prompts, before = PROMPTS[:40], prompt_tokens(pair.decode)
    answers, lengths = ask(pair.proxy, prompts, ("exact", None))
    fetched = sum(map(pair.handed_on, lengths))
    assert fetched > 0.7 * sum(lengths)
    assert came(before, pair.decode) == (fetched, sum(lengths) - fetched, 0)
    assert answers[::2] == plain(pair, prompts)[::2]


def test_only_the_decode_server_remaps(pair: Pair) -> None:
    ask(pair.proxy, PROMPTS[:44])
    running.eventually(lambda: scrape(pair.decode).total("rows_remapped_total"))
    seen = scrape(pair.decode)
    assert 0 < seen.total("distinct_experts_after_total") < seen.total("distinct_experts_before_total")
    assert not [name for name, _ in metrics(pair.prefill) if "lynx" in name]


def test_a_prompt_whose_kv_is_missing_is_computed_and_right(pair: Pair) -> None:
    before = prompt_tokens(pair.decode)
    answers, lengths = ask(pair.decode, PROMPTS[44:47], ["exact"])
    assert came(before, pair.decode) == (0, sum(lengths), 0)
    assert answers == plain(pair, PROMPTS[44:47])


def test_the_answer_comes_from_what_was_handed_on(pair: Pair) -> None:
    """With zeros in its place the answer is another one: nothing is computed again behind the counters."""
    if pair.connector != "ExampleConnector":
        pytest.skip("there are no files")
    right = plain(pair, PROMPTS[47:])
    for file in pair.store.rglob("*.safetensors"):
        save_file({name: torch.zeros_like(kv) for name, kv in load_file(file).items()}, file)
    assert ask(pair.decode, PROMPTS[47:], ["exact"])[0] != right
