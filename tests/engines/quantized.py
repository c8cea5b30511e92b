"""Checkpoints with quantised experts, from a bfloat16 one: `python tests/engines/quantized.py FROM TO [SCHEME]`.

Schemes: w8a8 (default), int4, gptq, awq, fp8; mxfp4 for gpt-oss. Experts only; attention, router and embeddings stay
as they are. No calibration data. Experts narrower than a scheme's blocks are widened by zeros, which changes nothing
that they compute.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from formats import FORMATS
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from lynx_moe.lab.quantization import BLOCK, GROUP, quantization_config

EXPERT = re.compile(r".*\.experts\.\d+\.(?P<part>\w+)\.weight$|.*\.experts\.(gate_up|down)_proj$")
INWARD = ("gate_proj", "up_proj", "w1", "w3")  # their rows are the experts' inner width; of the others the columns
MULTIPLE = {"w8a8": 32, "int4": GROUP, "gptq": GROUP, "awq": GROUP, "fp8": BLOCK, "mxfp4": 32}


def write(source: Path, target: Path, scheme: str = "w8a8") -> str:
    """Writes the checkpoint and returns its folder."""
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text())
    key = "moe_intermediate_size" if "moe_intermediate_size" in config else "intermediate_size"
    more = -config[key] % MULTIPLE[scheme]
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            tensors |= _quantised(name, tensor.float(), more, scheme) if EXPERT.match(name) else {name: tensor}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    new: dict[str, Any] = {
        key: config[key] + more,
        "quantization_config": quantization_config(scheme, config["num_hidden_layers"]),
    }
    (target / "config.json").write_text(json.dumps(config | new, indent=1))
    return str(target)


def _quantised(name: str, weight: torch.Tensor, more: int, scheme: str) -> dict[str, torch.Tensor]:
    found = EXPERT.match(name)
    assert found
    if found["part"]:
        weight = pad(weight, (0, 0, 0, more) if found["part"] in INWARD else (0, more))
    return FORMATS[scheme](name, weight)


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4]))
