"""Step "speculation": steps in which every request verifies a draft, on a published shape with random weights, in vLLM.

As `lynx-moe bench --drafts`, under FULL decode graphs of which each policy has its own set (`graphs.py`); all count.
"""

from functools import partial
from typing import Any

from lynx_moe.lab.gpu.checks.serve import about, open_all_layers
from lynx_moe.lab.speed import verification
from lynx_moe.lab.speed.shapes import SHAPES, tiny

SHAPE = "qwen3-30b"
ACCEPTANCE = (0.8, 0.6, 0.45)
POLICIES = ("priced", "moe-spec:budget={budget}", "acceptmoe")
BATCHES = (1, 4, 16)


def measure(dry: bool) -> dict[str, Any]:
    """The record: samples, and under `verification` what `bench --drafts` makes of them."""
    shape = tiny(SHAPES[SHAPE]) if dry else SHAPES[SHAPE]
    batches = (2,) if dry else BATCHES
    policies = verification.variants([policy.format(budget=24) for policy in POLICIES])
    rows = {size * each for size in batches for each in (1, 1 + len(ACCEPTANCE))}
    llm = open_all_layers(shape, batches, "vanilla", dry, sorted(rows), **verification.drafting(ACCEPTANCE))
    use: Any = None
    if not dry:
        from lynx_moe.lab.gpu.checks.graphs import GraphSets

        use = partial(GraphSets(llm).use, counting=True)
    rounds = 1 if dry else 3
    samples = verification.interleaved(llm, policies, batches, rounds, ACCEPTANCE, print, use)
    found = verification.whole(samples, policies, batches, ACCEPTANCE)
    return {**about(shape), "acceptance": ACCEPTANCE, "samples": samples, "verification": found}
