"""Step "uva": all experts in the host's memory, where the GPU's kernels read them, on a published layer shape, in vLLM.

Fewer layers than the model has: a step reads layers x experts x bytes over the host's link, and what an expert costs is
the question. Eager, so that policies switch and count as they are: a step waits for the link far longer than for
launches.
"""

import statistics
import time
from dataclasses import replace
from typing import Any

import torch

from lynx_moe.lab.gpu.checks.serve import about, open_all_layers
from lynx_moe.lab.speed import measure as speed
from lynx_moe.lab.speed.shapes import SHAPES, Shape, num_experts, tiny

SHAPE, LAYERS = "qwen3-30b", 8
POLICIES = ("vanilla", "lynx", "priced")
BATCHES = (1, 4, 8, 16)
KV_BYTES = 2**30
COPY = 2**30


def measure(dry: bool) -> dict[str, Any]:
    """The record as step "vllm-SHAPE" has it, without the time in kernels; `bytes_per_s` is the host's link's. Raises
    RuntimeError where experts are not read from the host's memory."""
    shape = tiny(SHAPES[SHAPE]) if dry else replace(SHAPES[SHAPE], all_layers=LAYERS)
    batches, rounds = ((2,), 1) if dry else (BATCHES, 3)
    from lynx_moe.engines import vllm as engine

    small: dict[str, Any] = {} if dry else {"kv_cache_memory_bytes": KV_BYTES}
    llm = open_all_layers(shape, batches, "vanilla", True, **offloading(shape), **small)
    lies = {} if dry else placed(shape, torch.cuda.memory_allocated())
    samples = speed.interleaved(llm, engine.set_policy, POLICIES, batches, rounds, print)
    experts = {policy: {batch: _counted(samples, policy, batch) for batch in batches} for policy in POLICIES[1:]}
    found = {"samples": samples, "summary": speed.summarise(samples, POLICIES, batches), "experts": experts}
    title = f"{shape.title}, experts in the host's memory (uva)"
    link = None if dry else link_bandwidth()
    return {**about(shape), **lies, **found, "kernels_us": {}, "bytes_per_s": link, "title": title}


def offloading(shape: Shape) -> dict[str, Any]:
    """vLLM's options that put all experts of a shape into the host's memory; it takes so many GiB at most."""
    gib = all_bytes(shape) / 2**30
    return {"offload_backend": "uva", "cpu_offload_gb": 1.1 * gib + 1, "cpu_offload_params": {"experts"}}


def placed(shape: Shape, device_bytes: int) -> dict[str, Any]:
    """Where the experts are, from the bytes that the GPU's memory holds when they are loaded. Raises RuntimeError where
    these must be among them: a kernel may have packed them anew, on the GPU."""
    from vllm.model_executor.offloader.base import get_offloader

    offloader: Any = get_offloader()
    host, needed = getattr(offloader, "cpu_offload_bytes", 0), all_bytes(shape)
    if not getattr(offloader, "uva_offloading", False) or host < needed:
        raise RuntimeError(f"vLLM offloaded {host:.3g} of {needed:.3g} bytes of experts by {type(offloader).__name__}")
    if device_bytes > KV_BYTES + needed:
        raise RuntimeError(f"{device_bytes:.3g} bytes lie on the GPU, so the {needed:.3g} bytes of experts do as well")
    return {"host_bytes": host, "device_bytes": device_bytes}


def all_bytes(shape: Shape) -> float:
    """Of all experts of all layers."""
    return shape.all_layers * num_experts(shape) * shape.expert_mib * 2**20


def link_bandwidth() -> float:
    """Bytes per second from pinned memory of the host to the GPU, the median of ten copies."""
    source, target = (
        torch.ones(COPY, dtype=torch.uint8).pin_memory(),
        torch.empty(COPY, dtype=torch.uint8, device="cuda"),
    )
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return COPY / statistics.median(seconds[2:])


def _counted(samples: list[dict[str, Any]], policy: str, batch: int) -> dict[str, Any]:
    line = next(line for line in samples if (line["policy"], line["batch"]) == (policy, batch))
    return {"before": line["before"], "after": line["after"]}
