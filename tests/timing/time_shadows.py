"""Times shadow steps: `python tests/timing/time_shadows.py`. Prints the table of docs/results/cost.md.

Decodes of two layers of Qwen3-30B-A3B's shape under `priced`, in turns of eight steps of which every one is a shadow
step, and eight of which none is; the second pass over the same requests takes the turns the other way round, so each
block of steps is compared with itself. What a share of 1/256 costs is the 256th part.
"""

from random import Random
from typing import Any

from lynx_moe.engines.vllm.step.shadows.passes import Shadows
from lynx_moe.lab.shared import intervals
from lynx_moe.lab.shared.engine import in_own_process, run_batch
from lynx_moe.lab.speed.guard_cost import is_guarded, pairs
from lynx_moe.lab.speed.measure import draw_prompts, open_shape

BATCHES, ROUNDS, TOKENS = (1, 4, 16), 3, 65


class Turns:
    """Gives a plan its shadow steps, and takes them away, every few steps."""

    def __init__(self, plan: Any, *, first: bool) -> None:
        self.plan, self.first, self.calls, self.shadows = plan, first, 0, Shadows(1)

    def after_step(self) -> None:
        self.plan.shadows = self.shadows if is_guarded(self.calls, self.first) else None
        self.calls += 1


def measure() -> list[tuple[str, ...]]:
    from lynx_moe.engines import vllm as engine
    from lynx_moe.engines.vllm.step.plan import active

    llm, rng, rows = open_shape("qwen3-30b", 2, max(BATCHES)), Random(0), []
    engine.set_policy("priced")
    for batch in BATCHES:
        off, on = [], []
        for number in range(ROUNDS + 1):
            prompts, passes = draw_prompts(batch, rng), []
            for first in (False, True):
                turns = Turns(active(), first=first)
                passes.append(run_batch(llm, prompts, TOKENS, after_step=turns.after_step).step_seconds)
                active().shadows = None
            alone, shadowed = pairs(*passes)
            off, on = (off + alone, on + shadowed) if number else ([], [])  # the first round warms up
        mean = sum(off) / len(off)
        slower = [100 * edge / mean for edge in (sum(on) / len(on) - mean, *intervals.mean_difference(on, off))]
        share = [f"{edge / 256:.2f}" for edge in slower]
        rows.append((str(batch), *(f"{edge:.0f}" for edge in slower), f"{share[0]} [{share[1]}, {share[2]}]"))
    return rows


if __name__ == "__main__":
    print("| batch | a shadow step takes longer by, % | at a share of 1/256, % of throughput |\n| --- | --- | --- |")
    for batch, slower, low, high, share in in_own_process(measure):
        print(f"| {batch} | {slower} [{low}, {high}] | {share} |")
