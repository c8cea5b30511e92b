"""Recordings of router logits: a safetensors file per run, from which any policy can be replayed without the model.

S steps, N rows of all steps one after another (padding left out), E experts, K = top_k. Of layer i the file holds
`logits.i` [N, E] as the router gave them, `ids.i` [N, K] (int16) and `weights.i` [N, K] (float32) of the model's own
routing, and `bias.i` [E] where the router has a selection bias; and for all layers `rows` [S] (int32), the rows of each
step, and `remap` [N] (bool), the rows that a policy may change. The header's `lynx_moe` is JSON: format, model, engine,
layers, environment.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lynx_moe.lab import record
from lynx_moe.routing import RouterSpec, Routing, Rows

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


class Recorder:
    """Collects whole steps until they would pass `max_bytes`; later ones are counted in `dropped` and left out."""

    def __init__(self, names: Sequence[str], specs: Sequence[RouterSpec], max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes={max_bytes} must be positive")
        self.names, self.specs, self.max_bytes = list(names), list(specs), max_bytes
        self.parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in names]
        self.rows: list[int] = []
        self.remap: list[Tensor] = []
        self.num_bytes = self.dropped = 0
        self._step: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._remap: Tensor | None = None

    def add(self, layer: int, logits_TE: Tensor, own: Routing, rows: Rows | None) -> None:
        """One layer of the current step; the layers of a step may come in any order."""
        keep_T = (
            torch.ones(len(logits_TE), dtype=torch.bool) if rows is None or rows.valid is None else rows.valid.cpu()
        )
        remap_T = keep_T if rows is None or rows.remap is None else rows.remap.cpu()
        parts = logits_TE.detach(), own.ids.to(torch.int16), own.weights.float()
        self._step[layer] = tuple(part.cpu()[keep_T].clone() for part in parts)  # type: ignore[assignment]
        self._remap = remap_T[keep_T].clone()
        if len(self._step) == len(self.names):
            self._finish()

    def _finish(self) -> None:
        assert self._remap is not None
        step, self._step = self._step, {}
        size = sum(part.numel() * part.element_size() for layer in step.values() for part in layer)
        if self.dropped or self.num_bytes + size > self.max_bytes:
            self.dropped += 1
            return
        self.num_bytes += size
        for layer, parts in step.items():
            self.parts[layer].append(parts)
        self.rows.append(len(self._remap))
        self.remap.append(self._remap)

    def save(self, path: Path, **facts: Any) -> Path:
        """Writes the whole steps; `facts` go to the header. Raises ValueError if there is none."""
        if not self.rows:
            raise ValueError("no step was recorded: nothing was decoded together, or max_bytes is below one step")
        tensors = {"rows": torch.tensor(self.rows, dtype=torch.int32), "remap": torch.cat(self.remap)}
        for number, (parts, spec) in enumerate(zip(self.parts, self.specs, strict=True)):
            for name, values in zip(("logits", "ids", "weights"), zip(*parts, strict=True), strict=True):
                tensors[f"{name}.{number}"] = torch.cat(values)
            if spec.bias is not None:
                tensors[f"bias.{number}"] = spec.bias.float().cpu().clone()
        layers = [{"name": name} | _plain(spec) for name, spec in zip(self.names, self.specs, strict=True)]
        header = {"format": FORMAT, "layers": layers, "dropped_steps": self.dropped, **facts}
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
            groups = tuple(layer.pop("groups")) if layer["groups"] else layer.pop("groups")
            spec = RouterSpec(
                **{k: v for k, v in layer.items() if k != "name"}, groups=groups, bias=tensors.get(f"bias.{number}")
            )
            own = Routing(tensors[f"ids.{number}"].long(), tensors[f"weights.{number}"])
            layers.append(Recorded(layer["name"], spec, tensors[f"logits.{number}"], own))
        return Recording(tuple(layers), tensors["rows"], tensors["remap"], header)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable recording of lynx-moe: {error}") from None


def _plain(spec: RouterSpec) -> dict[str, Any]:
    return {name: value for name, value in asdict(spec).items() if name != "bias"}
