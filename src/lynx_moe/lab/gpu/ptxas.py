"""`python -m lynx_moe.lab.gpu.ptxas`: compiles the kernels for an H200 without one; registers and spilt bytes of each.

A decision is taken with both kernels replaced by a note of what they are called with; Triton then compiles these calls
for sm_90, and its own ptxas reports.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from lynx_moe.kernels.gpu import launch
from lynx_moe.kernels.gpu.keep import keep_kernel
from lynx_moe.kernels.gpu.reroute import reroute_kernel
from lynx_moe.lab.gpu.checks.decision import ROUTERS
from lynx_moe.lab.shared import tables, terminal
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

CASES = (
    *(("lynx", rows, "softmax-128-8") for rows in (16, 64, 256)),
    *(("priced", rows, "softmax-128-8") for rows in (16, 64, 256, 512)),
    *(("priced", rows, "softmax-512-10") for rows in (16, 256)),
    *(("priced:num_keep=32", rows, "softmax-128-8") for rows in (16, 256)),
)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "*i32"}
TYPES |= {torch.int64: "*i64", torch.bool: "*i1"}
HEAD = ("policy", "rows", "router", "kernel", "warps", "registers", "spilt, bytes")


class Noted:
    """Stands for a kernel, and notes what it is called with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> "Noted":
        return self

    def __call__(self, *args: Any, num_warps: int, **constants: Any) -> None:
        self.num_warps = num_warps
        given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        self.given = {name: given[name] for name in self.kernel.arg_names}
        self.constants = {name: value for name, value in given.items() if name in constants or value is None}

    def ptx(self) -> str:
        """What Triton makes of the call."""
        kinds = {name: "constexpr" if name in self.constants else _kind(value) for name, value in self.given.items()}
        aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(kinds.values()) if "*" in kind}
        source = ASTSource(self.kernel, kinds, self.constants, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": self.num_warps})
        return str(made.asm["ptx"])


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def usage(ptx: str) -> tuple[int, int]:
    """(registers of a thread, bytes it spills), by ptxas. Raises RuntimeError if ptxas refuses."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx, encoding="utf-8")
        command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    registers = re.search(r"Used (\d+) registers", run.stderr)
    spilt = re.search(r"(\d+) bytes spill stores", run.stderr)
    if run.returncode or registers is None or spilt is None:
        raise RuntimeError(f"ptxas: {run.stderr[-2000:]}")
    return int(registers[1]), int(spilt[1])


def notes(text: str, num_rows: int, router: str) -> list[Noted]:
    """What both kernels are called with as vLLM asks for a decision: bfloat16 logits, int32 ids, masks and prices."""
    num_experts, top_k, more = ROUTERS[router]
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, **more)
    logits, mask = torch.randn(num_rows, num_experts).bfloat16(), torch.ones(num_rows, dtype=torch.bool)
    own = select(logits, spec)
    noted = [Noted(keep_kernel), Noted(reroute_kernel)]
    vote = make_policy(text).vote(spec)  # type: ignore[attr-defined]
    with patch.multiple(launch, keep_kernel=noted[0], reroute_kernel=noted[1]):
        rows = Rows(valid=mask, remap=mask, price=mask.float())
        launch.two_launches(logits, spec, rows, Routing(own.ids.int(), own.weights), vote)
    return noted


def main() -> None:
    lines = [
        (text, str(num_rows), router, noted.kernel.__name__, str(noted.num_warps), *map(str, usage(noted.ptx())))
        for text, num_rows, router in CASES
        for noted in notes(text, num_rows, router)
    ]
    tables.show(f"Triton {triton.__version__}, sm_90", HEAD, lines, terminal.console(), "")


if __name__ == "__main__":
    main()
