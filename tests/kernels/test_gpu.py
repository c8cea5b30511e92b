"""The Triton kernels without a GPU: in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lynx_moe import RouterSpec, make_policy
from lynx_moe.kernels import gpu

pytest.importorskip("triton")


def test_the_kernels_pass_their_cases_under_the_interpreter() -> None:
    cases = Path(__file__).with_name("gpu_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "passed" in run.stdout


@pytest.mark.parametrize(
    ("spec", "num_rows", "why"),
    [
        (RouterSpec(num_experts=16, top_k=2, scoring="sparsemixer"), 4, "a sparsemixer's weights have no kernel"),
        (RouterSpec(num_experts=600, top_k=2), 4, "600 experts are more than 512"),
        (RouterSpec(num_experts=16, top_k=2), 513, "513 rows are more than 512"),
        (RouterSpec(num_experts=16, top_k=2, groups=(4, 2), bias=torch.zeros(16)), 512, None),
    ],
)
def test_what_the_kernels_leave_to_the_definition_is_said(spec: RouterSpec, num_rows: int, why: str | None) -> None:
    assert gpu.obstacle(spec, num_rows) == why


def test_without_a_gpu_nothing_takes_the_kernels() -> None:
    logits, spec = torch.randn(4, 16), RouterSpec(num_experts=16, top_k=2)
    assert not gpu.fits(logits, spec)
    assert make_policy("oea:k0=1").decide(logits, spec).counts is None
