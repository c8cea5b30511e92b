"""`python -m lynx_moe.lab.load.batches URL`: quality and speed of a server that runs, policies in turns.

All goes through /v1/completions, and policies are switched at run time, so one command measures vLLM and SGLang alike.
Quality is exact match on the testbed's held-out exercises, greedy. Speed is the time per output token of batches of
requests that start together and write equally many tokens: A B C, B C A, ... for so many rounds.
"""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from lynx_moe.engines.shared.switching import Switch
from lynx_moe.lab.load.measure import counted
from lynx_moe.lab.load.server import Server, borrowed
from lynx_moe.lab.shared import record, tables, terminal
from lynx_moe.lab.shared.scores import paired
from lynx_moe.lab.speed.measure import PROMPT_TOKENS, draw_prompts, summarise
from lynx_moe.testbed.tasks import TASKS, test_items

MARGIN = 4  # tokens that an answer may have beyond the right one's characters
VOCABULARY = 200  # random prompts: ids that every tokenizer here has
Advance = Callable[[str], None]
Found = TypeVar("Found")


def quality(
    server: Server, policies: Sequence[str], items_per_task: int, concurrency: int, advance: Advance
) -> dict[str, Any]:
    """All policies on the same shuffled items, batches mix tasks. Raises ValueError with the server's reason."""
    items = [item for task in TASKS for item in test_items(task, items_per_task)]
    random.Random(0).shuffle(items)
    name, results = server.model()[0], []

    def right(item: Any) -> bool:
        given = {"prompt": item.prompt, "max_tokens": len(item.answer) + MARGIN, "temperature": 0}
        answer = json.loads(server.post("/v1/completions", {"model": name, **given}))["choices"][0]["text"]
        return bool(answer.strip() == item.answer.strip())

    for policy in policies:
        advance(f"quality, {policy}")
        found, experts = _turn(server, policy, concurrency, right, items)
        results.append({"policy": policy, "spec": policy, "right": found, **experts})
    return {"concurrency": concurrency, "results": results, "summary": paired(results)}


def speed(
    server: Server, policies: Sequence[str], batch_sizes: Sequence[int], rounds: int, tokens: int, advance: Advance
) -> dict[str, Any]:
    """Median, over the requests of a batch, of the mean time between their tokens; a first round warms up. Raises
    ValueError with the server's reason."""
    rng, samples = random.Random(0), []
    ask = partial(_between, server, server.model()[0], tokens)
    for batch in batch_sizes:
        for number in range(rounds + 1):
            prompts, turn = draw_prompts(batch, rng, VOCABULARY, PROMPT_TOKENS), number % len(policies)
            for policy in [*policies[turn:], *policies[:turn]]:
                advance(f"batch {batch}, round {number}, {policy}")
                seconds, experts = _turn(server, policy, batch, ask, prompts)
                sample = {"batch": batch, "round": number, "policy": policy, "spec": policy, "decision_us": None}
                samples += [sample | experts | {"tpot_ms": 1e3 * statistics.median(seconds)}] if number else []
    return {"batch_sizes": list(batch_sizes), "samples": samples, "summary": summarise(samples, policies, batch_sizes)}


def _turn(
    server: Server, policy: str, at_once: int, ask: Callable[[Any], Found], items: Sequence[Any]
) -> tuple[list[Found], dict[str, Any]]:
    """What was found of all items under the policy, and the distinct experts that steps of several rows loaded."""
    server.switch(Switch(policy=policy, goals=dict.fromkeys(server.goals)))
    before = server.counted()
    with ThreadPoolExecutor(at_once) as pool:
        found = list(pool.map(ask, items))
    new = counted(server.counted().since(before))
    return found, {"before": new["before"], "after": new["after"]}


def _between(server: Server, name: str, tokens: int, prompt: list[int]) -> float:
    """Seconds between the tokens of an answer, which is as long as was asked for."""
    given = {"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    given |= {"stream": True, "stream_options": {"include_usage": True}}
    times, written = [], 0
    with server.opened("/v1/completions", json.dumps(given).encode()) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                told = json.loads(line.removeprefix(b"data: "))
                times += [time.perf_counter()] if told["choices"] else []
                written = (told.get("usage") or {}).get("completion_tokens", written)
    if written != tokens or len(times) < tokens // 2:  # a token that ends no character may come with the next one
        raise ValueError(
            f"{server.url} streamed {written} of {tokens} tokens in {len(times)} pieces; let it stream each"
        )
    return (times[-1] - times[0]) / (tokens - 1)


def main(
    url: Annotated[str, typer.Argument(help="A server that `lynx-moe serve` started.")],
    policies: Annotated[str, typer.Option(help="Between spaces; the first is the baseline.")] = "vanilla priced lynx",
    items: Annotated[int, typer.Option(help="Exercises of each task; 0: no quality.")] = 40,
    concurrency: Annotated[int, typer.Option(help="Requests at a time, for quality.")] = 16,
    batch_sizes: Annotated[str, typer.Option(help="Between commas; nothing: no speed.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(help="Each policy once a round.")] = 5,
    tokens: Annotated[int, typer.Option(help="Of an answer, for speed.")] = 32,
    settle: Annotated[float, typer.Option(help="Seconds until /metrics has a step; above its metrics_every.")] = 6.0,
    out: Annotated[Path, typer.Option(help="The record.")] = Path("out/batches.json"),
) -> None:
    """Exact match of a trained model, and time per output token, on a server that runs."""
    console, named = terminal.console(), policies.split()
    whole: dict[str, Any] = {"kind": "batches", "environment": record.environment(), "url": url, "policies": named}
    with borrowed(url) as found:
        server = replace(found, settle=settle)
        if items:
            whole["quality"] = quality(server, named, items, concurrency, console.print)
        if batch_sizes:
            whole["speed"] = speed(
                server, named, [int(size) for size in batch_sizes.split(",")], rounds, tokens, console.print
            )
    if items:
        tables.show("Quality", *tables.quality_table(whole["quality"]["summary"]), console)
    if batch_sizes:
        tables.show("Speed", tables.SPEED_HEAD, tables.speed_rows(whole["speed"]["summary"]), console)
    console.print(f"Record: {record.save(whole, out)}")


if __name__ == "__main__":
    typer.run(main)
