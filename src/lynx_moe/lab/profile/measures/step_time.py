"""Step time against distinct experts: decode steps and prefills whose routing is forced to load a given number.

Settings are interleaved: each round times all of them once, in another order. The policy's own work is the same in all.
"""

import time
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.engines.transformers.cache import cache_in, cache_name
from lynx_moe.lab.profile.measures.denials import Forced

PROMPT = 64  # tokens of each prefill; of two sizes apart from decoding, none is measured
POINTS = 6
Line = dict[str, Any]


@torch.inference_mode()
def step_time(model: Any, batch_size: int, rounds: int, seed: int) -> list[Line]:
    """A line for decode (one token of each sequence beside a cache) and one for prefill (PROMPT tokens of each)."""
    device = next(model.parameters()).device
    spec = apply(model, "vanilla").layers[0].spec
    most = min(spec.num_experts, batch_size * spec.top_k)
    wanted = sorted({round(number) for number in np.linspace(spec.top_k, most, POINTS)})
    runs = {number: apply(model, Forced(num_distinct=number), phase="all") for number in wanted}
    ids_BL = torch.randint(min(100, model.config.get_text_config().vocab_size), (batch_size, PROMPT), device=device)
    cache = cache_in(model(ids_BL, use_cache=True).values())
    facts = {
        "batch_size": batch_size,
        "experts_bytes": experts_bytes(model),
        "cache_bytes": cache_bytes(device),
        "implementation": getattr(model.config, "_experts_implementation", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    found = []
    for phase, tokens_BL in (("decode", ids_BL[:, :1]), ("prefill", ids_BL)):
        times: dict[int, list[float]] = {number: [] for number in wanted}
        rng = Random(seed)
        for turn in range(rounds + 1):
            for number in rng.sample(wanted, len(wanted)):
                own = deepcopy(cache) if phase == "decode" else None
                taken = _timed(model, runs[number], tokens_BL, own)
                if turn:  # the first round warms up
                    times[number].append(taken)
        points = [{"experts": number, "ms": [round(1e3 * one, 4) for one in times[number]]} for number in wanted]
        found.append({"phase": phase, "rows": tokens_BL.numel(), "points": points, "fit": fit(points), **facts})
    return found


def _timed(model: Any, run: Run, tokens_BL: Tensor, cache: Any) -> float:
    """Seconds of one forward."""
    with run:
        _wait(tokens_BL.device)
        start = time.perf_counter()
        model(tokens_BL, **{str(cache_name(model.forward)): cache}, use_cache=cache is not None)
        _wait(tokens_BL.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fit(points: list[Line]) -> Line:
    """Least squares over the medians: ms = base + slope * experts, and the share of their variance it explains."""
    x = np.array([point["experts"] for point in points], dtype=float)
    y = np.array([np.median(point["ms"]) for point in points])
    if len(points) < 3:
        return {"base": float(y.mean()), "slope": 0.0, "r2": None}
    slope, base = np.polyfit(x, y, 1)
    left = ((y - base - slope * x) ** 2).sum() / max(((y - y.mean()) ** 2).sum(), 1e-30)
    return {"base": float(base), "slope": float(slope), "r2": float(1 - left)}


def experts_bytes(model: Any) -> int | None:
    """Bytes of all experts' weights; None where no module is named as transformers names them."""
    modules = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters()) or None


def cache_bytes(device: torch.device) -> int | None:
    """Bytes of the last cache before memory, as the device tells; None where it does not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [
        file.read_text(encoding="utf-8").strip()
        for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max((int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes), default=None)
