"""Single experts straight from a checkpoint's files: no second copy of them on the disk."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lynx_moe.engines.disk.checkpoint import Checkpoint, File
from lynx_moe.engines.disk.source import Job, Source


@dataclass(frozen=True)
class Span:
    """So many bytes of a file, from there on."""

    file: File
    offset: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class SinglePart:
    """A tensor of every expert: `shape` of one, torch dtype by name, and of each expert the spans that, one after the
    other, are its bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    spans_E: Sequence[tuple[Span, ...]]

    @property
    def bytes(self) -> int:
        """Of one expert."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True, kw_only=True)
class SingleLayer:
    """The experts of the layer of this name."""

    name: str
    num_experts: int
    parts: tuple[SinglePart, ...]

    @property
    def expert_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)


class Singles(Source):
    """Experts of a checkpoint, through the page cache: they begin anywhere in their files."""

    direct = False

    def __init__(self, checkpoint: Checkpoint, layers: Sequence[SingleLayer]) -> None:
        super().__init__()
        self.checkpoint, self.path, self.singles = checkpoint, Path(checkpoint.folder), layers

    @property
    def layers(self) -> Sequence[SingleLayer]:
        return self.singles

    def close(self) -> None:
        """As before, and closes the files."""
        super().close()
        self.checkpoint.close()

    def _read(self, job: Job) -> int:
        layer = self.singles[job.layer]
        for part, view in zip(layer.parts, job.into, strict=True):
            start = 0
            for span in part.spans_E[job.expert]:
                what = f"expert {job.expert} of {layer.name} in {span.file.path}"
                span.file.fill(view[start : start + span.bytes], span.offset, what)
                start += span.bytes
        return layer.expert_bytes
