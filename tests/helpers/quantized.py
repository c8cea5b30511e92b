"""Checkpoints with quantised experts from bfloat16 ones: `python tests/helpers/quantized.py FROM TO [SCHEME [GROUP]]`.

Schemes: w8a8 (default); int4, gptq, awq (groups of 64 if nothing is said); fp8, fp8-tensor; mxfp4 for gpt-oss.
`rounded` takes w8a8 or int4, and writes the rounded weights as bfloat16 ones, for CPUs without the kernels.
Attention, router and embeddings stay as they are. No calibration data. Experts narrower than a group or block are
widened by zeros, which changes nothing that they compute.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import formats
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from lynx_moe.lab.speed.quantization import BLOCK, GROUP, quantization_config

EXPERT = re.compile(r".*\.experts\.\d+\.(?P<part>\w+)\.weight$|.*\.experts\.(gate_up|down)_proj$")
INWARD = ("gate_proj", "up_proj", "w1", "w3")  # their rows are the expert's inner width; of the others the columns
Format = Callable[[str, torch.Tensor], formats.Tensors]


def write(source: Path, target: Path, scheme: str = "w8a8", group: int = GROUP) -> str:
    """Writes the checkpoint and returns its folder."""
    choices: dict[str, tuple[Format, int]] = {  # and what must divide the inner width
        "w8a8": (formats.w8a8, 32),
        "int4": (partial(formats.int4, group=group), group),
        "gptq": (partial(formats.gptq, group=group), group),
        "awq": (partial(formats.awq, group=group), group),
        "fp8": (formats.fp8, BLOCK),
        "fp8-tensor": (formats.fp8_tensor, 32),
        "mxfp4": (formats.mxfp4, 32),
    }
    quantise, multiple = choices[scheme]
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text())
    key = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    more = -config[key] % multiple
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found = EXPERT.match(name)
            tensors |= quantise(name, _widened(tensor.float(), found["part"], more)) if found else {name: tensor}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    quantization = quantization_config(scheme, config["num_hidden_layers"], group)
    new: dict[str, Any] = {key: config[key] + more, "quantization_config": quantization}
    (target / "config.json").write_text(json.dumps(config | new, indent=1))
    return str(target)


def rounded(source: Path, target: Path, scheme: str, group: int = GROUP) -> str:
    """Writes a checkpoint whose experts' weights are what the scheme (w8a8, int4) makes of them; returns its folder.
    Activations stay as they are."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if EXPERT.match(name):
                width = group if scheme == "int4" and tensor.shape[-1] % group == 0 else tensor.shape[-1]
                tensor = formats.as_rounded(tensor.float(), scheme, width).to(tensor.dtype)
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return str(target)


def _widened(weight: torch.Tensor, part: str | None, more: int) -> torch.Tensor:
    """By so many inner channels of zeros. `part` is None where a tensor holds all experts: those are wide enough."""
    return pad(weight, (0, 0, 0, more) if part in INWARD else (0, more)) if more else weight


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4], *map(int, sys.argv[4:5])))
