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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compiled kernels and CUDA graphs need a GPU")
def test_the_kernels_pass_their_cases_on_this_gpu() -> None:
    cases = Path(__file__).with_name("gpu_cases.py")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)], check=True)


@pytest.mark.parametrize("policy", ["lynx", "priced", "priced:num_keep=32"])
def test_an_h200_s_compiler_takes_the_kernels(policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lets pass, Triton's compiler may not: types and shapes above all."""
    from lynx_moe.lab.gpu.ptxas import notes, usage

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for noted in notes(policy, 16, "softmax-128-8"):
        registers, spilt = usage(noted.ptx())
        assert 16 < registers < 255
        assert spilt < 200


@pytest.mark.parametrize(
    ("policy", "spec", "why"),
    [
        ("oea:k0=1", {"scoring": "sparsemixer"}, "a sparsemixer's weights have no kernel"),
        ("priced", {"scoring": "sparsemixer"}, None),
        ("priced", {"num_experts": 600}, "600 experts are more than 512"),
        ("priced:norm=mass", {}, "priced:norm=mass: the kernels know norm=own only, and guard each step"),
        ("xshare:alpha=0.5,norm=mass", {}, "xshare:alpha=0.5,norm=mass: the kernels know norm=model only, and guard"),
        ("lynx", {"groups": (4, 2), "bias": torch.zeros(16)}, None),
    ],
)
def test_what_the_kernels_leave_to_the_definition_is_said(policy: str, spec: dict, why: str | None) -> None:
    found = make_policy(policy).without_kernel(RouterSpec(**{"num_experts": 16, "top_k": 2, **spec}))
    assert found == why or (why is not None and found is not None and found.startswith(why))


def test_without_a_gpu_nothing_takes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, spec = torch.randn(4, 16), RouterSpec(num_experts=16, top_k=2)
    assert not gpu.fits(logits)
    assert make_policy("oea:k0=1").decide(logits, spec).counts is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert [gpu.fits(torch.zeros(num_rows, 16)) for num_rows in (0, 1, 512, 513)] == [False, True, True, False]
