"""The calibration file: safetensors with one set of tensors per MoE layer, and what they were measured on.

    tensors   layers.{number}.{name}: the layer's number in the model, names and shapes as in policies/calibrated.py
    metadata  "lynx_moe": JSON with the format's version and `Provenance`

Nothing else below engines/ reads a file: policies take tensors, engines call `attach`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lynx_moe.policies import Policy
from lynx_moe.policies.contract.calibrated import DIMENSIONS

KEY, VERSION = "lynx_moe", 1


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the tensors were measured on: the model, the data (name and how they were cut), how many tokens of them,
    the seed of any draw, and the versions of what ran it ({"torch": "2.13.0"})."""

    model: str
    data: str
    num_tokens: int
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Artifact:
    """layers: number of the layer in the model -> its tensors by name."""

    layers: Mapping[int, Mapping[str, Tensor]]
    provenance: Provenance


def save(artifact: Artifact, path: Path) -> None:
    """Writes the file. Raises ValueError if a tensor has an unknown name or a wrong shape, or is not finite."""
    from safetensors.torch import save_file

    _check(artifact, str(path))
    flat = {f"layers.{n}.{name}": t.contiguous() for n, layer in artifact.layers.items() for name, t in layer.items()}
    about = {"version": VERSION, **asdict(artifact.provenance)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flat, path, metadata={KEY: json.dumps(about)})


def load(path: Path | str) -> Artifact:
    """Reads the file. Raises ValueError, naming it, if it is missing, no calibration, of another version, or broken."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f"reading {path} needs safetensors: pip install safetensors") from None
    if not Path(path).is_file():
        raise ValueError(f"calibration file {path} does not exist")
    layers: dict[int, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(KEY, "{}"))
            if about.pop("version", None) != VERSION:
                raise ValueError(f"{path} is not a calibration of version {VERSION}, by its metadata {KEY!r}")
            for key in file.keys():  # noqa: SIM118 - the handle is no dictionary
                name = key.rpartition(".")[2]
                layers.setdefault(layer_number(key), {})[name] = file.get_tensor(key)
        artifact = Artifact(layers=layers, provenance=Provenance(**about))
    except (SafetensorError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not a readable calibration: {error}") from None
    _check(artifact, str(path))
    return artifact


def require(policy: Policy) -> None:
    """Raises ValueError if the policy names a calibration file that cannot be read: before a model is loaded."""
    if policy.calibration_file is not None:
        load(policy.calibration_file)


def attach(policy: Policy, layers: Sequence[str], device: torch.device) -> list[Policy]:
    """The policy of every layer, with its calibration on the device; `layers` are the layers' names in the model.

    Reads the policy's file if it has one. Raises ValueError if the file does not hold what the policy needs.
    """
    path = policy.calibration_file
    if path is None:
        return [policy for _ in layers]
    moved = {n: {name: t.to(device) for name, t in layer.items()} for n, layer in load(path).layers.items()}
    return [policy.for_layer(layer_number(name), moved) for name in layers]


def layer_number(name: str) -> int:
    """3 for "model.layers.3.mlp.experts". Raises ValueError for a name without a number."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    if found is None:
        raise ValueError(f"layer {name!r} has no number, so calibration data cannot be attached to it")
    return int(found[1])


def _check(artifact: Artifact, path: str) -> None:
    for number, layer in artifact.layers.items():
        for name, tensor in layer.items():
            where = f"{path}: {name} of layer {number}"
            if name not in DIMENSIONS:
                raise ValueError(f"{where} is unknown; allowed: {', '.join(DIMENSIONS)}")
            if tensor.dim() != DIMENSIONS[name] or len(set(tensor.shape)) != 1 or not tensor.dtype.is_floating_point:
                raise ValueError(f"{where} has shape {tuple(tensor.shape)}; expected E numbers, or E x E for pairs")
            if tensor.isnan().any() or (name != "fold_loss" and tensor.isinf().any()):
                raise ValueError(f"{where} is not finite; calibrate again")
