"""How much longer a step is than `vanilla`'s, where the policy always acts, and where a doctor says at which sizes:
`OMP_NUM_THREADS=1 python tests/timing/time_acting.py MODEL ACT_FROM ACT_TO 1,2,4 RUNS`.

One engine; from step to step of one batch it changes between the variants, so that every step is taken by each of them.
Prints the table of docs/results/doctor.md: the median step, and how much longer a step is than vanilla's same step, as
the median over all steps, with its 95 % interval. In seconds of the process's own CPU time.
"""

import random
import sys
import time
from dataclasses import replace

import numpy as np

from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.lab.shared import intervals
from lynx_moe.lab.shared.engine import open_engine, run_batch
from lynx_moe.policies import DEFAULT

STEPS = 120  # of each of a run's three passes
VARIANTS = ("vanilla", "always", "as found")


def main(model: str, act_from: int, act_to: int, batches: list[int], runs: int) -> None:
    options = {"skip_tokenizer_init": True, "enforce_eager": True, "enable_prefix_caching": False}
    llm = open_engine(model, DEFAULT, max_num_seqs=max(batches), max_model_len=512, **options)
    plan, rng = active(), random.Random(0)
    fits = {variant: plan.check("vanilla" if variant == "vanilla" else DEFAULT) for variant in VARIANTS}
    ranges = {"as found": {"act_from": act_from, "act_to": act_to}}

    def become(variant: str) -> None:
        plan.put(*fits[variant])
        plan.options = replace(plan.options, **ranges.get(variant, {"act_from": 1, "act_to": None}))

    for batch in batches:
        took = {variant: np.zeros((runs, STEPS)) for variant in VARIANTS}
        for number in range(runs + 1):
            prompts = [[rng.randrange(llm.model_config.get_vocab_size()) for _ in range(16)] for _ in range(batch)]
            for first in range(len(VARIANTS)):
                turns = [VARIANTS[(step + first) % len(VARIANTS)] for step in range(STEPS)]
                coming = iter(turns)
                become(VARIANTS[0])
                run = run_batch(
                    llm, prompts, STEPS + 1, time.process_time, lambda turn=coming: become(next(turn, VARIANTS[0]))
                )
                for step, variant in enumerate(turns if number else ()):  # run 0 warms up
                    took[variant][number - 1, step] = run.step_seconds[step]
        for variant in VARIANTS:
            shares = (100 * (took[variant] / took["vanilla"] - 1)).ravel()
            low, high = intervals.median(shares)
            step_ms = 1e3 * np.median(took[variant])
            print(f"| {batch} | {variant} | {step_ms:.2f} ms | {np.median(shares):+.2f} % [{low:+.2f}, {high:+.2f}] |")


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        [int(size) for size in sys.argv[4].split(",")],
        int(sys.argv[5]),
    )
