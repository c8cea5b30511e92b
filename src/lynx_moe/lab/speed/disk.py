"""What steps read from a disk where not all experts are in memory: by the engine's count and by the kernel's."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DECODE = ("decode", "single")
HEAD = ("experts read", "found, %", "MiB a step", "waited, ms", "kernel's count")
CAPTION = (
    "Experts of a layer and decode step that were read, and the share that was in memory. kernel's count: bytes that "
    "the kernel read from the disk for this process (/proc/self/io, read_bytes), as a share of those counted here."
)


def bytes_read() -> int:
    """What the kernel has read from disks for this process; 0 where it does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def sample_of(stats: Any, kernel_bytes: int) -> dict[str, Any]:
    """Of one run: means over its decode steps, which all layers share; nothing if all experts are in memory."""
    if stats.disk is None:
        return {}
    by_kind = stats.disk["steps"]
    steps = max(sum(stats.steps[kind] for kind in DECODE), 1)
    sums = {key: sum(by_kind[kind][key] for kind in DECODE if kind in by_kind) for key in next(iter(by_kind.values()))}
    counted = sum(one["bytes"] for one in by_kind.values())
    return {
        "loads": sums["loads"] / steps / len(stats.layers),
        "found": sums["hits"] / max(sums["hits"] + sums["loads"], 1),
        "mib": sums["bytes"] / steps / 2**20,
        "wait_ms": 1e3 * sums["seconds"] / steps,
        "rounds": sums["rounds"] / steps / len(stats.layers),
        "kernel": kernel_bytes / counted if counted else None,
    }


def summarise(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over rounds."""
    if "loads" not in samples[0]:
        return {}
    keys = ("loads", "found", "mib", "wait_ms", "rounds")
    shares = [sample["kernel"] for sample in samples if sample["kernel"] is not None]
    kernel = statistics.median(shares) if shares else None
    return {key: statistics.median(sample[key] for sample in samples) for key in keys} | {"kernel": kernel}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Of a summary's row, as HEAD names them."""
    kernel = "" if row["kernel"] is None else f"{row['kernel']:.3f}"
    found = f"{100 * row['found']:.0f}"
    return (f"{row['loads']:.1f}", found, f"{row['mib']:.0f}", f"{row['wait_ms']:.1f}", kernel)
