"""What the plugin costs where it does nothing: `OMP_NUM_THREADS=1 python tests/engines/time_vllm_off.py 8 15`
(batch sizes, rounds).

One engine on a layer of Qwen3-30B-A3B's shape, interleaved: vLLM's own routers and no hooks (plain), policy vanilla
without counting, and with it. Prints the table of docs/serving.md: the median step, and the median over the rounds of
each variant's median step against plain's of the same round, with the middle half of the rounds in brackets. Steps are
in seconds of the process's own CPU time, which others on the machine do not lengthen by taking turns.
"""

import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lynx_moe.lab.engine import open_engine, run_batch
from lynx_moe.lab.random_weights import LOAD_FORMAT, register_loader
from lynx_moe.lab.shapes import SHAPES, VOCABULARY, write_config

VARIANTS = ("plain", "vanilla, stats=false", "vanilla")


def main(batches: list[int], rounds: int) -> None:
    register_loader()
    with tempfile.TemporaryDirectory() as folder:
        model = write_config(SHAPES["qwen3-30b"], 1, Path(folder))
        options = {"load_format": LOAD_FORMAT, "skip_tokenizer_init": True, "enforce_eager": True}
        options |= {"enable_prefix_caching": False, "dtype": "bfloat16", "max_model_len": 512}
        llm = open_engine(model, max_num_seqs=max(batches), **options)
    rng = random.Random(0)
    for batch in batches:
        took: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for number in range(rounds + 1):
            prompts = [[rng.randrange(VOCABULARY) for _ in range(16)] for _ in range(batch)]
            turn = number % len(VARIANTS)
            for variant in (*VARIANTS[turn:], *VARIANTS[:turn]):
                become(llm, variant)
                seconds = statistics.median(run_batch(llm, prompts, 25, time.process_time).step_seconds)
                if number:  # round 0 warms up
                    took[variant].append(seconds)
        for variant in VARIANTS:
            shares = [100 * (own / base - 1) for own, base in zip(took[variant], took["plain"], strict=True)]
            low, middle, high = statistics.quantiles(shares, n=4)
            step = f"{1e3 * statistics.median(took[variant]):.1f} ms"
            print(f"| {batch} | {variant} | {step} | {middle:+.2f} % [{low:+.2f}, {high:+.2f}] |", flush=True)


def become(llm: Any, variant: str) -> None:
    """Takes the plugin's routers and hooks out of the running model, or puts them back."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    from lynx_moe.engines.vllm import hooks, plan

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
