"""What the plugin costs where it does nothing: `OMP_NUM_THREADS=1 python tests/timing/time_vllm_off.py 8,16 4`
(batch sizes, runs).

One engine on a layer of Qwen3-30B-A3B's shape. From step to step of one batch it changes between vLLM's own routers
and no hooks (plain), policy vanilla without counting, and with it. A run decodes the same tokens three times, so that
every step is taken by every variant. Prints the table of docs/results/cost.md: the median step, and how much
longer a step is than plain's same step, as the median over all steps, with its 95 % interval. Steps are in seconds of
the process's own CPU time, which others on the machine do not lengthen by taking turns.
"""

import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lynx_moe.lab.shared import intervals
from lynx_moe.lab.shared.engine import open_engine, run_batch
from lynx_moe.lab.speed.random_weights import LOAD_FORMAT, register_loader
from lynx_moe.lab.speed.shapes import SHAPES, VOCABULARY, write_config

STEPS = 480  # of each of a run's three passes
VARIANTS = ("plain", "vanilla, stats=false", "vanilla")


def main(batches: list[int], runs: int) -> None:
    register_loader()
    with tempfile.TemporaryDirectory() as folder:
        model = write_config(SHAPES["qwen3-30b"], 1, Path(folder))
        options = {"load_format": LOAD_FORMAT, "skip_tokenizer_init": True, "enforce_eager": True}
        options |= {"enable_prefix_caching": False, "dtype": "bfloat16", "max_model_len": 512}
        llm = open_engine(model, max_num_seqs=max(batches), **options)
    rng = random.Random(0)
    for batch in batches:
        took: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(runs + 1):
            prompts = [[rng.randrange(VOCABULARY) for _ in range(16)] for _ in range(batch)]
            passes = [turns(llm, prompts, first) for first in range(len(VARIANTS))]
            for step in range(STEPS) if number else ():  # run 0 warms up
                for first, seconds in enumerate(passes):
                    took[variant_of(step, first)].append(seconds[step])
        plain = np.array(took["plain"])
        for variant in VARIANTS:
            shares = 100 * (np.array(took[variant]) / plain - 1)
            low, high = intervals.median(shares)
            step = f"{1e3 * np.median(took[variant]):.1f} ms"
            print(
                f"| {batch} | {variant} | {step} | {np.median(shares):+.2f} % [{low:+.2f}, {high:+.2f}] |", flush=True
            )


def turns(llm: Any, prompts: list[list[int]], first: int) -> list[float]:
    """Seconds of decode steps under changing variants."""
    coming = iter([variant_of(step, first) for step in range(STEPS)])
    become(llm, VARIANTS[0])
    return run_batch(
        llm, prompts, STEPS + 1, time.process_time, lambda: become(llm, next(coming, VARIANTS[0]))
    ).step_seconds


def variant_of(step: int, first: int) -> str:
    return VARIANTS[(step + first) % len(VARIANTS)]


def become(llm: Any, variant: str) -> None:
    """Takes the plugin's routers and hooks out of the running model, or puts them back."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    from lynx_moe.engines.vllm.model import hooks
    from lynx_moe.engines.vllm.step import plan

    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
    if not hasattr(model, "kept"):
        runners = [module for module in model.modules() if isinstance(module, MoERunner)]
        model.kept = [(runner, runner.router) for runner in runners]
    for runner, router in model.kept:
        runner.router = router.unwrap() if variant == "plain" else router
    active = plan.active()
    setattr(model, hooks.PLAN, None if variant == "plain" else active)
    active.options = replace(active.options, stats=variant == "vanilla")


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1].split(",")], int(sys.argv[2]))
