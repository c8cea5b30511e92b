"""The steps: what each measures, and how long it may take."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from lynx_moe.lab.gpu.checks.step import Step
from lynx_moe.lab.shared import record

LIMITS = {"qwen3-30b": 120, "olmoe-1b-7b": 55, "mixtral-8x7b": 70, "gpt-oss-20b": 70}
MODES, SPECULATION, UVA = "modes", "speculation", "uva"


def steps() -> dict[str, Step]:
    """All steps by name."""
    from lynx_moe.lab.gpu.checks import apart, decision, kernels, model, modes, prices, serve, speculation, trained, uva

    table = {
        "copy": Step(measure=decision.copy_bandwidth, limit=20),
        "kernels": Step(measure=kernels.check, limit=140, timed=False),
        MODES: Step(measure=modes.measure, limit=140, timed=False),
        "prices": Step(measure=prices.measure, limit=90, timed=False),
        "decision": Step(measure=decision.measure, limit=60),
    }
    for shape, limit in LIMITS.items():
        table[f"vllm-{shape}"] = Step(measure=serve.on(shape), limit=limit, apart=apart.on(shape))
    for shape, limit in LIMITS.items():
        table[f"transformers-{shape}"] = Step(measure=model.on(shape), limit=limit)
    table[SPECULATION] = Step(measure=speculation.measure, limit=150)
    table[UVA] = Step(measure=uva.measure, limit=120)
    table["trained"] = Step(measure=trained.measure, limit=560)
    return table


def usual() -> list[str]:
    """What is run unless something else is asked for: all but `trained`, shapes and drafts through vLLM where it can be
    imported, else shapes through transformers."""
    other = ("transformers-",) if importlib.util.find_spec("vllm") is not None else ("vllm-", MODES, SPECULATION, UVA)
    return [name for name in steps() if name != "trained" and not name.startswith(other)]


def run(names: Sequence[str], out: Path, *, dry: bool, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """The records of the named steps, each from its file in `out` if it is there already and did not fail.

    A step that fails, or outlives its limit (six times it in a dry run), leaves a record with `failed` and its log.
    """
    table = steps()
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"unknown step {', '.join(unknown)}; allowed: {', '.join(table)}")
    one = partial(_run_one, out=out, dry=dry, tell=tell)
    together = [name for name in names if not table[name].timed]
    with ThreadPoolExecutor(1 if dry else max(1, len(together))) as pool:
        records = dict(zip(together, pool.map(lambda name: one(name, table[name]), together), strict=True))
    for name in names:
        if name not in records:
            records[name] = one(name, table[name])
    return {name: records[name] for name in names}


def _run_one(name: str, step: Step, *, out: Path, dry: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """The step's record, from its file where it is done already."""
    path, log = out / f"{name}.json", out / f"{name}.log"
    before = record.load(path) if path.exists() else {"failed": "not run"}
    if "failed" not in before and before["dry"] == dry:
        tell(f"{name}: done before")
        return before
    again = path.exists() and "failed" in before and before["dry"] == dry
    apart = step.apart is not None and (again or not swaps(out, dry))
    tell(f"{name}{', an engine per policy' if apart else ''} ...")
    start, limit = time.monotonic(), step.limit * (6 if dry else 1)
    failed = _in_child(name, path, log, dry, limit, apart)
    if failed:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        record.save({"kind": "gpu-step", "failed": failed, "dry": dry, "log": tail}, path)
    tell(f"{name}: {failed or 'done'} in {time.monotonic() - start:.0f} s")
    return record.load(path)


def swaps(out: Path, dry: bool) -> bool:
    """Whether sets of graphs may be swapped in one engine: unless step `modes` has found that they may not."""
    path = out / f"{MODES}.json"
    found = record.load(path) if path.exists() else {}
    return found.get("dry", dry) != dry or bool(found.get("result", {}).get("swap", True))


def measure_here(name: str, path: Path, *, dry: bool, apart: bool) -> None:
    """What the child process does."""
    step = steps()[name]
    result = (step.apart if apart and step.apart else step.measure)(dry)
    record.save({"kind": "gpu-step", "dry": dry, "device": device(), "result": result}, path)


def device() -> str:
    """The GPU's name, or that there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def command_of(name: str, out: Path, dry: bool, apart: bool) -> list[str]:
    """The child process of a step."""
    options = [option for option, wanted in (("--dry-run", dry), ("--apart", apart)) if wanted]
    return [sys.executable, "-m", "lynx_moe.lab.gpu", "--step", name, "--out", str(out), *options]


def _in_child(name: str, path: Path, log: Path, dry: bool, limit: int, apart: bool) -> str | None:
    log.parent.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ)
    if dry:
        env |= {"CUDA_VISIBLE_DEVICES": ""}
        if not name.startswith(("vllm", "trained", "kernels", MODES, SPECULATION, UVA)):
            env |= {"TRITON_INTERPRET": "1"}
    with log.open("w", encoding="utf-8") as file:
        command = command_of(name, path.parent, dry, apart)
        child = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            return f"stopped after {limit} s"
        finally:  # no engine of a step may run beside the next one
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return f"exit code {code}" if code else None
