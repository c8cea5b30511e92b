"""SGLang on a CPU, as these tests have it: the torch-native path, with two stub packages (`tests/stubs_sglang`)."""

import importlib.util
import os
import sys
from pathlib import Path

from lynx_moe.testbed import tasks

STUBS = Path(__file__).parent.parent / "stubs_sglang"
_sglang = importlib.util.find_spec("sglang")
HAS_SGLANG = _sglang is not None and _sglang.origin is not None  # tests/engines/sglang has that name too
WITHOUT = "SGLang is not installed; `make test-sglang` sets up an environment that has it"
ARGUMENTS = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "max_total_tokens": 8192,
    "mem_fraction_static": 0.8,
    "dtype": "float32",
}
PROMPTS = [item.prompt for task in tasks.TASKS for item in tasks.test_items(task, 1, seed=7)][:12]
LENGTH = 24  # of answers to them
ENV = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def prepare() -> None:
    """In this process and in those that it starts, SGLang can be imported."""
    os.environ.update(ENV)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STUBS), os.environ.get("PYTHONPATH"))))
    if str(STUBS) not in sys.path:
        sys.path.insert(0, str(STUBS))


def flags() -> list[str]:
    """`ARGUMENTS` on a command line."""
    found = []
    for name, value in ARGUMENTS.items():
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found
