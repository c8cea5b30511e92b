"""Step "kernels": they equal the plain-torch definition, on the GPU itself."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lynx_moe

CASES = Path(lynx_moe.__file__).parents[2] / "tests" / "kernels" / "gpu_cases.py"


def check(dry: bool) -> dict[str, Any]:
    """Runs the tests' cases; without a GPU two of them in Triton's interpreter. Raises RuntimeError if one fails.

    Every shape of a step is compiled for seconds, so the cases are shared out to 12 processes where pytest can do that.
    """
    if not CASES.exists():
        raise ValueError(f"{CASES} is missing: run this from a clone of the repository")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    env = dict(os.environ)
    if dry:
        command += ["-k", "alone or own_routing"]
        env |= {"TRITON_INTERPRET": "1"}
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "12"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    print(run.stdout[-8000:], run.stderr[-2000:])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped)", run.stdout)}
    if run.returncode:
        raise RuntimeError(f"the kernels do not equal the definition: {counts}")
    return counts
