"""The steps: what each measures, and how long it may take."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_moe.lab import record

Measure = Callable[[bool], dict[str, Any]]
LIMITS = {"qwen3-30b": 120, "olmoe-1b-7b": 55, "mixtral-8x7b": 70, "gpt-oss-20b": 70}


@dataclass(frozen=True, kw_only=True)
class Step:
    """measure(dry) -> the record, in a process of its own; limit: its seconds on a GPU."""

    measure: Measure
    limit: int


def steps() -> dict[str, Step]:
    """All steps by name."""
    from lynx_moe.lab.gpu import decision, kernels, model, serve, trained

    table = {
        "copy": Step(measure=decision.copy_bandwidth, limit=20),
        "kernels": Step(measure=kernels.check, limit=130),
        "decision": Step(measure=decision.measure, limit=60),
    }
    for engine, module in (("vllm", serve), ("transformers", model)):
        for shape, limit in LIMITS.items():
            table[f"{engine}-{shape}"] = Step(measure=module.on(shape), limit=limit)
    table["trained"] = Step(measure=trained.measure, limit=560)
    return table


def usual() -> list[str]:
    """What is run unless something else is asked for: all but `trained`, shapes through vLLM where it can be imported,
    else through transformers."""
    other = "transformers-" if importlib.util.find_spec("vllm") is not None else "vllm-"
    return [name for name in steps() if name != "trained" and not name.startswith(other)]


def run(names: Sequence[str], out: Path, *, dry: bool, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The records of the named steps, each from its file in `out` if it is there already and did not fail.

    A step that fails, or outlives its limit (six times it in a dry run), leaves a record with `failed` and its log.
    """
    table, records = steps(), {}
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"unknown step {', '.join(unknown)}; allowed: {', '.join(table)}")
    for name in names:
        path, log = out / f"{name}.json", out / f"{name}.log"
        before = record.load(path) if path.exists() else {"failed": "not run"}
        if "failed" not in before and before["dry"] == dry:
            tell(f"{name}: done before")
            records[name] = before
            continue
        tell(f"{name} ...")
        start, limit = time.monotonic(), table[name].limit * (6 if dry else 1)
        failed = _in_child(name, path, log, dry, limit)
        if failed:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            record.save({"kind": "gpu-step", "failed": failed, "dry": dry, "log": tail}, path)
        records[name] = record.load(path)
        tell(f"{name}: {failed or 'done'} in {time.monotonic() - start:.0f} s")
    return records


def measure_here(name: str, path: Path, *, dry: bool) -> None:
    """What the child process does."""
    result = steps()[name].measure(dry)
    record.save({"kind": "gpu-step", "dry": dry, "device": device(), "result": result}, path)


def device() -> str:
    """The GPU's name, or that there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _in_child(name: str, path: Path, log: Path, dry: bool, limit: int) -> str | None:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lynx_moe.lab.gpu", "--step", name, "--out", str(path.parent)]
    env = dict(os.environ)
    if dry:
        command.append("--dry-run")
        env |= {"CUDA_VISIBLE_DEVICES": ""}
        if not name.startswith(("vllm", "trained", "kernels")):
            env |= {"TRITON_INTERPRET": "1"}
    with log.open("w") as file:
        try:
            child = subprocess.run(command, env=env, stdout=file, stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit} s"
    return f"exit code {child.returncode}" if child.returncode else None
