"""Step "kernels": they equal the plain-torch definition, on the GPU itself."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[5]  # of the clone
CASES = ROOT / "tests" / "kernels" / "gpu_cases.py"
PROCESSES = 12


def check(dry: bool) -> dict[str, Any]:
    """Runs the tests' cases; without a GPU two of them in Triton's interpreter. Raises RuntimeError if one fails.

    Every shape of a step is compiled for seconds, so the cases are shared out to 12 processes.
    """
    if not CASES.exists():
        raise ValueError(f"{CASES} is missing: run this from a clone of the repository")
    some = ["-k", "left_alone or own_routing"] if dry else []
    listed = _pytest("--collect-only", *some, str(CASES), dry=dry).communicate()[0]
    cases = [line for line in listed.splitlines() if line.count("::") == 1 and "Error" not in line]
    if not cases:
        raise RuntimeError(f"pytest finds no case: {listed[-2000:]}")
    count = 1 if dry else min(PROCESSES, len(cases))
    runs = [_pytest(*cases[first::count], dry=dry) for first in range(count)]
    counts = Counter[str]()
    for run in runs:
        said = run.communicate()[0]
        print(said[-8000:])
        counts.update({word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said)})
    if any(run.returncode for run in runs) or sum(counts.values()) != len(cases):
        raise RuntimeError(f"the kernels do not equal the definition: {dict(counts)} of {len(cases)} cases")
    return dict(counts)


def _pytest(*options: str, dry: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    env = {**os.environ, "TRITON_INTERPRET": "1"} if dry else None
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
