"""What a quality guard costs: long decodes of one policy, the guard on and off in turns of BLOCK steps.

In turns, because a machine's speed wanders by more than the guard costs within seconds. Every round decodes the same
requests twice, the second time with the turns the other way round: so each block of steps is compared with itself.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.lab.shared import intervals, record
from lynx_moe.lab.shared.engine import run_batch
from lynx_moe.lab.speed.measure import PROMPT_TOKENS, SHAPE_TOKENS, check, draw_prompts, open_shape
from lynx_moe.lab.speed.shapes import SHAPES

BLOCK = 8
CAPTION = "[95 % interval]"
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
    """The record: of every round the seconds of each block of BLOCK steps with (`guarded`) and without (`alone`) the
    guard. `own` is the share that the guard's own clock saw.

    Raises ValueError for a bad shape, batch size, guard, or a number of tokens that does not fit.
    """
    check(shape, batch_sizes)
    GuardOptions.of(guard)
    if not BLOCK < tokens <= SHAPE_TOKENS - PROMPT_TOKENS:
        raise ValueError(f"--tokens {tokens} must lie between {BLOCK + 1} and {SHAPE_TOKENS - PROMPT_TOKENS}")
    from lynx_moe.engines import vllm as engine
    from lynx_moe.engines.vllm.step import plan

    layers = layers or SHAPES[shape].layers
    llm = open_shape(shape, layers, max(batch_sizes))
    rng, samples = random.Random(0), []
    for batch in batch_sizes:
        for policy in policies:
            engine.set_guard(None)
            engine.set_policy(policy)
            engine.set_guard(dict(guard))
            for number in range(rounds + 1):
                advance(f"batch {batch}, {policy}")
                prompts, passes, before = draw_prompts(batch, rng), [], _own_seconds(engine)
                for first in (False, True):
                    turns = Turns(plan.active(), first)
                    passes.append(run_batch(llm, prompts, tokens, after_step=turns.after_step).step_seconds)
                    turns.end()
                alone, guarded = pairs(*passes)
                line = {"batch": batch, "policy": policy, "round": number, "alone": alone, "guarded": guarded}
                line |= {"own": _own_seconds(engine) - before, "state": engine.guard()}
                samples += [line] if number else []  # round 0 warms up
    return {
        "kind": "guard cost",
        "environment": record.environment(),
        "model": f"{layers} layers of {SHAPES[shape].title}'s shape, random weights, bfloat16, eager",
        "gates": SHAPES[shape].gates.about(),
        "guard": dict(guard),
        "tokens": tokens,
        "samples": samples,
        "summary": summarise(samples),
    }


def _own_seconds(engine: Any) -> float:
    return float(engine.guard()["seconds"])


class Turns:
    """Takes the guard from a plan and gives it back, every BLOCK decode steps; `first`: whether it is there first."""

    def __init__(self, plan: Any, first: bool) -> None:
        self.plan, self.first, self.watch, self.calls = plan, first, plan.watch, 0

    def after_step(self) -> None:
        """What comes next is decode step number `calls`: the first call comes after the prompts' step."""
        self.plan.watch = self.watch if is_guarded(self.calls, self.first) else None
        self.calls += 1

    def end(self) -> None:
        self.plan.watch = self.watch


def is_guarded(step: int, first: bool) -> bool:
    """Whether a decode step, counted from 0, runs under the guard."""
    return (step // BLOCK % 2 == 0) == first


def pairs(off_first: Sequence[float], on_first: Sequence[float]) -> tuple[list[float], list[float]]:
    """Seconds of each block without the guard, and with it, from two passes; an incomplete block is dropped."""
    blocks: tuple[list[float], list[float]] = ([], [])
    for start in range(0, len(off_first) // BLOCK * BLOCK, BLOCK):
        for first, seconds in ((False, off_first), (True, on_first)):
            blocks[is_guarded(start, first)].append(sum(seconds[start : start + BLOCK]))
    return blocks


def summarise(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per batch size and policy: means over all blocks, and how much slower those with the guard are."""
    rows = []
    for batch, policy in dict.fromkeys((line["batch"], line["policy"]) for line in samples):
        mine = [line for line in samples if (line["batch"], line["policy"]) == (batch, policy)]
        alone, guarded = ([second for line in mine for second in line[kind]] for kind in ("alone", "guarded"))
        mean = sum(alone) / len(alone)
        rows.append(
            {
                "batch": batch,
                "policy": policy,
                "blocks": len(alone),
                "alone": batch * BLOCK / mean,
                "guarded": batch * BLOCK * len(guarded) / sum(guarded),
                "slower": sum(guarded) / sum(alone) - 1,
                "slower_interval": [edge / mean for edge in intervals.mean_difference(guarded, alone)],
                "own": sum(line["own"] for line in mine) / sum(guarded),
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
            f"{100 * row['slower']:+.2f} [{', '.join(f'{100 * edge:+.2f}' for edge in row['slower_interval'])}]",
            f"{100 * row['own']:.2f}",
        )
        for row in summary
    ]
