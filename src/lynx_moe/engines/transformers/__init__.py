"""transformers: a policy on any MoE causal language model, inside a `with` block.

    with lynx_moe.apply(model, "priced") as run:
        model.generate(**inputs)
        print(run.stats().mean_before, run.stats().mean_after)

Nothing here imports transformers before `offload` opens a model: one that is handed in has done so.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lynx_moe.engines.disk.amount import Amount
from lynx_moe.engines.disk.slots import Sums
from lynx_moe.engines.shared.metrics import LayerStats, Stats, Tally
from lynx_moe.engines.transformers.offloading import Offloaded
from lynx_moe.engines.transformers.run import Run
from lynx_moe.policies import Policy

__all__ = ["LayerStats", "Offloaded", "Run", "Stats", "Sums", "Tally", "apply", "offload"]


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


def offload(
    folder: str | Path, *, resident: int | str, dtype: Any = "auto", attn_implementation: str | None = None
) -> Offloaded:
    """Opens a model that may be larger than memory: all of it is loaded but the experts, of which each layer keeps
    some, and reads the others from the checkpoint's files when a forward needs them.

        with lynx_moe.offload(folder, resident="25%") as opened, lynx_moe.apply(opened.model, "priced"):
            opened.model.generate(**inputs)
            print(opened.stats().loads, opened.stats().hits)

    folder    a local folder with a config.json and safetensors, whole or in shards, not quantised.
    resident  how many experts stay in memory: a count for each layer (32), a share of each layer's ("25%"), or memory
              for those of all layers together ("4GiB"); at least one row's (top-k). The one used longest ago goes.
    dtype, attn_implementation  as for transformers' `from_pretrained`; the dtype must be that of the experts' tensors.

    Answers are those of the same model with `experts_implementation="eager"`, bit for bit, whatever `resident` is: each
    expert's arithmetic and their order are the model's own. For forwards on a CPU; no gradients, no torch.compile.

    Raises ValueError for a bad `resident` or dtype, a folder without a whole checkpoint, a model without MoE layers,
    and one whose experts lie in the checkpoint so that they cannot be read one by one. A forward raises ReadError
    where an expert cannot be read; nothing is computed from it.
    """
    return Offloaded(Path(folder), Amount.of(resident, "resident"), dtype, attn_implementation)
