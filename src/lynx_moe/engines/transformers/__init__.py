"""transformers: a policy on any MoE causal language model, inside a `with` block.

    with lynx_moe.apply(model, "priced") as run:
        model.generate(**inputs)
        print(run.stats().mean_before, run.stats().mean_after)

Nothing here imports transformers: a model that is handed in has done so.
"""

from collections.abc import Collection
from typing import Any

from lynx_moe.engines.shared.metrics import LayerStats, Stats, Tally
from lynx_moe.engines.transformers.run import Run
from lynx_moe.policies import Policy

__all__ = ["LayerStats", "Run", "Stats", "Tally", "apply"]


def apply(
    model: Any, policy: str | Policy, *, phase: str = "decode", layers: Collection[int] | None = None, ranks: int = 1
) -> Run:
    """A policy for a transformers model; it acts inside `with apply(...) as run:`, or from `run.install()` to
    `run.remove()`.

    model   a causal language model of transformers 5 with MoE layers, on one device; docs/reference/transformers.md
            lists which.
    policy  a spec string, such as "priced:price=0.01", or a policy. "vanilla" changes nothing, but counts.
    phase   which rows may be remapped: "decode" (one new token beside a cache), "prefill" (the others) or "all".
    layers  numbers of the MoE layers to act on, 0 being the first that can be remapped; None: all.
    ranks   a policy with per_rank=true decides as if the experts lived on so many, one after another, of equal size.

    Raises ValueError for a bad policy or option, a knob that does not fit a layer, and a model without MoE layers, with
    none that can be remapped, or split over devices.
    """
    return Run(model, policy, phase, layers, ranks)
