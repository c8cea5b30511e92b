"""Checkpoints with quantised experts, from a bfloat16 one: `python tests/engines/quantized.py FROM TO [SCHEME]`.

w8a8: 8-bit integers, one scale per output channel (round to nearest). int4: 4-bit integers, one scale per 64 inputs,
packed as compressed-tensors does. Experts only; attention, router and embeddings stay as they are. No calibration data.
"""

import copy
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lynx_moe.lab.shapes import W8A8_EXPERTS

GROUP = 64  # vLLM 0.32 has no kernel for groups of 32 on a CPU
EXPERT = re.compile(r".*\.experts\.\d+\.\w+_proj\.weight$")


def scheme_config(scheme: str) -> dict[str, Any]:
    config = copy.deepcopy(W8A8_EXPERTS)
    if scheme == "int4":
        config["format"] = "pack-quantized"
        experts = config["config_groups"]["experts"]
        experts["input_activations"] = None
        experts["weights"] |= {"num_bits": 4, "strategy": "group", "group_size": GROUP}
    return config


def w8a8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}


def int4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    rows, columns = weight.shape
    grouped = weight.view(rows, columns // GROUP, GROUP)
    scale = grouped.abs().amax(2, keepdim=True).clamp(min=1e-8) / 7
    signed = (grouped / scale).round().clamp(-8, 7).view(rows, columns // 8, 8).long() + 8
    packed = (signed << torch.arange(0, 32, 4)).sum(2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    shape = torch.tensor([rows, columns])
    return {f"{name}_packed": packed, f"{name}_scale": scale.squeeze(2).bfloat16(), f"{name}_shape": shape}


SCHEMES = {"w8a8": w8a8, "int4": int4}


def write(source: Path, target: Path, scheme: str = "w8a8") -> str:
    """Writes the checkpoint and returns its folder."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            tensors |= SCHEMES[scheme](name, tensor.float()) if EXPERT.match(name) else {name: tensor}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": scheme_config(scheme)}, indent=1))
    return str(target)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4]))
