"""Time per output token under several policies, interleaved in one engine on a published layer shape."""

import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.shared import record
from lynx_moe.lab.shared.engine import open_engine, run_batch
from lynx_moe.lab.speed import disk, trained
from lynx_moe.lab.speed.random_weights import LOAD_FORMAT, register_loader
from lynx_moe.lab.speed.shapes import SHAPES, VOCABULARY, Shape, num_experts, write_config

PROMPT_TOKENS = 16
NEW_TOKENS = 25
SHAPE_TOKENS = 512  # of a request on a shape, at most


def measure(
    *,
    shape: str,
    layers: int | None,
    policies: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    experts_resident: str | None = None,
    experts_folder: str | None = None,
    experts_residency: str | None = None,
    model: str | None = None,
    data: str = "testbed",
    advance: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """The record of an interleaved run: A B C, B C A, ... for `rounds` rounds at every batch size, after a warm-up of
    the same size. `advance` is called once per batch of requests: batch sizes x policies x (rounds + 1) times.

    A round's TPOT is the median of its decode steps (milliseconds). experts_resident: what stays in memory, the rest is
    read from a disk (`disk.py`); None: all does. experts_residency: whether policies know it, as `Options` says; None:
    they do not. model: a trained one in place of a shape, on prompts of `data` (`trained.py`). Raises ValueError as
    `check` and `trained.drawing` do.
    """
    check(shape, batch_sizes)
    from lynx_moe.engines import vllm as engine

    asked = {"experts_resident": experts_resident, "experts_folder": experts_folder}
    asked["experts_residency"] = experts_residency
    paged = {key: value for key, value in asked.items() if value is not None}
    draw: trained.Draw = draw_prompts
    if model is None:
        llm = open_shape(shape, layers or SHAPES[shape].layers, max(batch_sizes), **paged)
        told = about(SHAPES[shape], layers or SHAPES[shape].layers)
    else:
        llm = trained.open_trained(model, max(batch_sizes), **paged)
        draw = trained.drawing(llm.get_tokenizer(), data, PROMPT_TOKENS, NEW_TOKENS)
        told = trained.about(model, engine.shape())
    samples = interleaved(llm, engine.set_policy, policies, batch_sizes, rounds, advance, draw)
    return {
        "kind": "speed",
        "environment": record.environment(),
        **told,
        "policies": list(policies),
        "batch_sizes": list(batch_sizes),
        "rounds": rounds,
        "experts_resident": experts_resident,
        "experts_residency": experts_residency,
        "samples": samples,
        "summary": summarise(samples, policies, batch_sizes),
    }


def interleaved(
    llm: Any,
    use: Callable[[str], str],
    policies: Sequence[str],
    batch_sizes: Sequence[int],
    rounds: int,
    advance: Callable[[str], None],
    draw: trained.Draw | None = None,
) -> list[dict[str, Any]]:
    """The samples of `measure`, from an open engine that `use` switches to a policy; it returns the full spec. draw:
    makes a batch's prompts; None: of random tokens."""
    rng = random.Random(0)
    samples: list[dict[str, Any]] = []
    for batch in batch_sizes:
        for number in range(rounds + 1):
            found = one_round(llm, use, policies, number, (draw or draw_prompts)(batch, rng), advance)
            samples += found if number else []  # round 0 warms up
    return samples


def one_round(
    llm: Any,
    use: Callable[[str], str],
    policies: Sequence[str],
    number: int,
    prompts: Sequence[list[int]],
    advance: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A sample of every policy on the same prompts; in the next round another policy is the first."""
    from lynx_moe.engines import vllm as engine

    samples, turn = [], number % len(policies)
    for policy in [*policies[turn:], *policies[:turn]]:
        advance(f"batch {len(prompts)}, {policy}")
        full_spec = use(policy)
        engine.reset_stats()
        read = disk.bytes_read()
        run, stats = run_batch(llm, prompts, NEW_TOKENS), engine.stats()
        sample = sample_of(len(prompts), number, policy, full_spec, run.step_seconds, stats)
        samples.append(sample | disk.sample_of(stats, disk.bytes_read() - read))
    return samples


def draw_prompts(
    batch: int, rng: random.Random, vocabulary: int = VOCABULARY, tokens: int = PROMPT_TOKENS
) -> list[list[int]]:
    """Prompts of random tokens."""
    return [[rng.randrange(vocabulary) for _ in range(tokens)] for _ in range(batch)]


def about(shape: Shape, layers: int) -> dict[str, Any]:
    """What a record says of a shape with so many layers."""
    return {
        "model": f"{layers} layers of {shape.title}'s shape, random weights, bfloat16, eager",
        "gates": shape.gates.about(),
        "num_experts": num_experts(shape),
        "top_k": shape.config["num_experts_per_tok"],
        "layers": layers,
    }


def open_shape(shape: str, layers: int, max_num_seqs: int, **options: Any) -> Any:
    """An eager engine on so many layers of a published shape, with random weights; more of vLLM's own options."""
    register_loader()
    with tempfile.TemporaryDirectory() as folder:
        return open_engine(
            write_config(SHAPES[shape], layers, Path(folder)),
            load_format=LOAD_FORMAT,
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=False,
            dtype="bfloat16",
            max_model_len=SHAPE_TOKENS,
            max_num_seqs=max_num_seqs,
            **options,
        )


def check(shape: str, batch_sizes: Sequence[int]) -> None:
    """Raises ValueError for a shape that is not in the table or a batch size below 1."""
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; allowed: {', '.join(SHAPES)}")
    if min(batch_sizes) < 1:
        raise ValueError(f"batch sizes {', '.join(map(str, batch_sizes))} must all be at least 1")


def sample_of(batch: int, number: int, policy: str, full_spec: str, seconds: list[float], stats: Any) -> dict[str, Any]:
    """What a record keeps of one run: its median step, and what the policy did."""
    alone = not any(layer.alike.steps for layer in stats.layers)  # one row, which the policy passes by uncounted
    return {
        "batch": batch,
        "round": number,
        "policy": policy,
        "spec": full_spec,
        "tpot_ms": 1e3 * statistics.median(seconds),
        "before": None if alone else stats.mean_before,
        "after": None if alone else stats.mean_after,
        "decision_us": stats.decision_us,
    }


def summarise(
    samples: Sequence[dict[str, Any]], policies: Sequence[str], batch_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """One row per batch size and policy: median TPOT with its range over the rounds, and the speed-up against the first
    policy as the median of the rounds' ratios, with their range."""
    rows = []
    for batch in batch_sizes:
        base = [s["tpot_ms"] for s in samples if (s["batch"], s["policy"]) == (batch, policies[0])]
        for policy in policies:
            mine = [s for s in samples if (s["batch"], s["policy"]) == (batch, policy)]
            tpot = [s["tpot_ms"] for s in mine]
            ratio = [b / t for b, t in zip(base, tpot, strict=True)]
            median = statistics.median(tpot)
            rows.append(
                {
                    "batch": batch,
                    "policy": policy,
                    "tpot_ms": median,
                    "tpot_range_ms": [min(tpot), max(tpot)],
                    "tokens_per_s": 1e3 * batch / median,
                    "speedup": statistics.median(ratio),
                    "speedup_range": [min(ratio), max(ratio)],
                    "before": _mean(s["before"] for s in mine),
                    "after": _mean(s["after"] for s in mine),
                    "decision_us": _median(s["decision_us"] for s in mine),
                    **disk.summarise(mine),
                }
            )
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return statistics.mean(given) if given else None


def _median(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]  # None: where nobody waits for a decision, on a GPU
    return statistics.median(given) if given else None
