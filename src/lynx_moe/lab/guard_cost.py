"""What a quality guard costs: long decodes of one policy with and without it, interleaved in one engine."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.lab import record
from lynx_moe.lab.engine import run_batch
from lynx_moe.lab.shapes import SHAPES
from lynx_moe.lab.speed import PROMPT_TOKENS, check, draw_prompts, open_shape

CAPTION = "[lowest and highest round]"
HEAD = ("batch", "policy", "tokens/s", "guarded", "slower, %", "guard's own time, %")


def measure(
    *,
    shape: str,
    layers: int | None,
    policies: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    tokens: int,
    guard: Mapping[str, Any],
    advance: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """The record: of every round a run without and one with the guard, in turn first. A run's seconds are those of all
    its decode steps, so that sampled ones count. `own` is the share that the guard's own clock saw.

    Raises ValueError for a bad shape, batch size, guard, or more tokens than the engine holds.
    """
    check(shape, batch_sizes)
    GuardOptions.of(guard)
    if not 2 <= tokens <= 512 - PROMPT_TOKENS:
        raise ValueError(f"--tokens {tokens} must lie between 2 and {512 - PROMPT_TOKENS}")
    from lynx_moe.engines import vllm as engine

    layers = layers or SHAPES[shape].layers
    llm = open_shape(shape, layers, max(batch_sizes))
    rng, samples = random.Random(0), []
    for batch in batch_sizes:
        for policy in policies:
            for number in range(rounds + 1):
                prompts = draw_prompts(batch, rng)
                line: dict[str, Any] = {"batch": batch, "policy": policy, "round": number}
                for guarded in (False, True) if number % 2 else (True, False):
                    advance(f"batch {batch}, {policy}, {'guarded' if guarded else 'alone'}")
                    engine.set_guard(None)
                    engine.set_policy(policy)
                    engine.set_guard(dict(guard) if guarded else None)
                    seconds = sum(run_batch(llm, prompts, tokens).step_seconds)
                    line["guarded" if guarded else "alone"] = seconds
                    if guarded:
                        line["state"] = engine.guard()
                samples += [line] if number else []  # round 0 warms up
    return {
        "kind": "guard cost",
        "environment": record.environment(),
        "model": f"{layers} layers of {SHAPES[shape].title}'s shape, random weights, bfloat16, eager",
        "guard": dict(guard),
        "tokens": tokens,
        "samples": samples,
        "summary": summarise(samples, tokens),
    }


def summarise(samples: Sequence[Mapping[str, Any]], tokens: int) -> list[dict[str, Any]]:
    """One row per batch size and policy: medians over the rounds, and the range of the rounds' slow-downs."""
    rows = []
    for batch, policy in dict.fromkeys((line["batch"], line["policy"]) for line in samples):
        mine = [line for line in samples if (line["batch"], line["policy"]) == (batch, policy)]
        slower = [line["guarded"] / line["alone"] - 1 for line in mine]
        rows.append(
            {
                "batch": batch,
                "policy": policy,
                "alone": batch * (tokens - 1) / statistics.median(line["alone"] for line in mine),
                "guarded": batch * (tokens - 1) / statistics.median(line["guarded"] for line in mine),
                "slower": statistics.median(slower),
                "slower_range": [min(slower), max(slower)],
                "own": statistics.median(line["state"]["seconds"] / line["guarded"] for line in mine),
            }
        )
    return rows


def table(summary: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The rows under HEAD."""
    return [
        (
            str(row["batch"]),
            row["policy"],
            f"{row['alone']:.1f}",
            f"{row['guarded']:.1f}",
            f"{100 * row['slower']:+.2f} [{', '.join(f'{100 * edge:+.2f}' for edge in row['slower_range'])}]",
            f"{100 * row['own']:.2f}",
        )
        for row in summary
    ]
