"""How much memory there is, and a refusal in words before more is asked for: the kernel would kill without any."""

from collections.abc import Mapping
from pathlib import Path

import torch

SHARE = 0.8  # of what is free: an estimate knows nothing of fragmentation, and of others who grow meanwhile
GIB = 2**30
LIMITS = (  # of a container, and what it uses of that
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def allowed(device: torch.device, max_gib: float | None) -> int | None:
    """Bytes that may be taken from now on: what was asked for, else a share of what is free; None: nobody knows.

    Raises ValueError for a number that is none.
    """
    if max_gib is not None:
        if not 0 < max_gib < float("inf"):
            raise ValueError(f"--max-memory {max_gib:g} must be a number of GiB above 0")
        return int(max_gib * GIB)
    found = free(device)
    return None if found is None else int(SHARE * found)


def free(device: torch.device) -> int | None:
    """Bytes that a process can have on this device without anything being swapped or killed; None: it does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [value for value in (_available(), *(_left(*files) for files in LIMITS)) if value is not None]
    return min(found, default=None)


def refuse_above(limit: int | None, parts: Mapping[str, int], what: str, lower: str) -> None:
    """Raises ValueError where `parts`, bytes by name, are more than the limit together; `lower` says what helps."""
    total = sum(parts.values())
    if limit is not None and total > limit:
        each = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        raise ValueError(
            f"{what} would take about {total / GIB:.1f} GiB beside the model ({each}), and {limit / GIB:.1f} may be "
            f"used; {lower}"
        )


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left(limit: str, used: str) -> int | None:
    try:
        return int(Path(limit).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such group, or "max"
        return None
