"""Recordings of router logits: a safetensors file per run, from which any policy can be replayed without the model.

S steps, N rows of all steps one after another (padding left out), E experts, K = top_k. Of layer i the file holds
`logits.i` [N, E] as the router gave them, `ids.i` [N, K] (int16) and `weights.i` [N, K] (float32) of the model's own
routing, and `bias.i` [E] where the router has a selection bias; and for all layers `rows` [S] (int32), the rows of each
step, and `remap` [N] (bool), the rows that a policy may change. The header's `lynx_moe` is JSON: format, model, engine,
layers, environment.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.lab.shared import record
from lynx_moe.routing import RouterSpec, Routing

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Recorded:
    """One layer: its name, its router's rule, and what was asked and chosen for all N rows."""

    name: str
    spec: RouterSpec
    logits: Tensor
    own: Routing


@dataclass(frozen=True, eq=False)
class Recording:
    """`facts` are the header's: model, engine, environment and what the recorder adds."""

    layers: tuple[Recorded, ...]
    rows: Tensor
    remap: Tensor
    facts: dict[str, Any]


def save(recorder: Recorder, path: Path, **facts: Any) -> Path:
    """Writes the whole steps; `facts` go to the header. Raises ValueError if there is none."""
    if not recorder.remap:
        raise ValueError("no step was recorded: no two requests decoded together, or max_bytes is below one step")
    rows = torch.tensor([len(remap) for remap in recorder.remap], dtype=torch.int32)
    tensors, layers = {"rows": rows, "remap": torch.cat(recorder.remap)}, []
    for place, (number, layer) in enumerate(recorder.layers.items()):
        columns = zip(("logits", "ids", "weights"), zip(*recorder.parts[number], strict=True), strict=True)
        tensors |= {f"{name}.{place}": torch.cat(values) for name, values in columns}
        if layer.spec.bias is not None:
            tensors[f"bias.{place}"] = layer.spec.bias.float().cpu().clone()
        layers.append({"name": layer.name} | {k: v for k, v in asdict(layer.spec).items() if k != "bias"})
    header = {"format": FORMAT, "layers": layers, "dropped_steps": recorder.dropped, **facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, {"lynx_moe": json.dumps(header | {"environment": record.environment()})})
    return part.replace(path)


def load(path: Path) -> Recording:
    """The recording at `path`. Raises ValueError if the file is none, or of another format."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["lynx_moe"])
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']}, this version reads {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layers = []
        for number, layer in enumerate(header.pop("layers")):
            name, groups = layer.pop("name"), layer.pop("groups")
            bias = tensors.get(f"bias.{number}")
            spec = RouterSpec(**layer, groups=tuple(groups) if groups else None, bias=bias)
            own = Routing(tensors[f"ids.{number}"].long(), tensors[f"weights.{number}"])
            layers.append(Recorded(name, spec, tensors[f"logits.{number}"], own))
        return Recording(tuple(layers), tensors["rows"], tensors["remap"], header)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable recording of lynx-moe: {error}") from None
