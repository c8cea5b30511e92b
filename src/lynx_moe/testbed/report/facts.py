"""What every card tells of its model and machine."""

import hashlib
import json
import platform
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from lynx_moe.testbed.model.families import Family


def training_record(log: Path, family: Family) -> dict[str, Any]:
    """What the run cost, from its log; `seconds` (of the processor) restart at every resumption and are added up."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    ends = [a["seconds"] for a, b in pairwise(records) if b["seconds"] < a["seconds"]]
    steps = records[-1]["step"]
    return {
        "steps": steps,
        "tokens": steps * family.batch_rows * family.row_length,
        "seconds": sum(ends) + records[-1]["seconds"],
        "seed": family.seed,
        "machine": processor(),
    }


def weights_hash(folder: Path, file: str = "model.safetensors") -> str:
    """SHA-256 of the weights in `folder`."""
    return hashlib.sha256((folder / file).read_bytes()).hexdigest()


def as_lines(scores: dict[str, Any]) -> str:
    """JSON with a line for each entry, however long its lists are."""
    return re.sub(
        r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(scores, indent=1)
    )


def processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
