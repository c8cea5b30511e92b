"""An expert file: the packed weights of all experts of a model, and at its end what they are.

    region of layer 0 | region of layer 1 | ... | JSON | tail

A region has a block per part (gate and up together, down), in which the experts stand one after another. Blocks begin
at multiples of BLOCK bytes, as reads past the page cache ask for. The tail is the last thing that is written: without
it the file is not whole.
"""

import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

BLOCK = 4096
MAGIC = b"lynx-moe experts 1\n"
TAIL = struct.Struct("<19sQ32s")  # magic, bytes of the JSON before it, their SHA-256
MOST_JSON = 2**28


class BadFile(ValueError):
    """The file is not what it should be; the message says how, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of every expert of a layer: `shape` of one of them, its torch dtype by name, and where the block begins."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    offset: int

    @property
    def bytes(self) -> int:
        """Of one expert."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True, kw_only=True)
class LayerRegion:
    """crcs: CRC-32 of every expert, over its parts in turn."""

    name: str
    num_experts: int
    parts: tuple[Part, ...]
    crcs: list[int] = field(default_factory=list)

    def spans(self, expert: int) -> list[tuple[int, int]]:
        """(offset, bytes) of each part of an expert."""
        return [(part.offset + expert * part.bytes, part.bytes) for part in self.parts]

    @property
    def expert_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @classmethod
    def heard(cls, told: dict[str, Any]) -> Self:
        parts = tuple(Part(**{**part, "shape": tuple(part["shape"])}) for part in told["parts"])
        return cls(**{**told, "parts": parts})


def aligned(offset: int) -> int:
    """The next multiple of BLOCK."""
    return -(-offset // BLOCK) * BLOCK


def crc(views: Sequence[Any]) -> int:
    """CRC-32 of buffers in turn."""
    value = 0
    for view in views:
        value = zlib.crc32(view, value)
    return value


def ending(layers: Sequence[LayerRegion], made_from: dict[str, Any]) -> bytes:
    """What stands after the last region."""
    told = json.dumps({"made_from": made_from, "layers": [asdict(layer) for layer in layers]}).encode()
    return told + TAIL.pack(MAGIC, len(told), hashlib.sha256(told).digest())


def read_layers(fd: int, path: Path, made_from: dict[str, Any]) -> list[LayerRegion]:
    """The layers of a whole file that was made from this.

    Raises BadFile for one that is cut short, of another kind, or made from something else.
    """
    size = os.fstat(fd).st_size
    try:
        magic, length, digest = TAIL.unpack(os.pread(fd, TAIL.size, max(size - TAIL.size, 0)))
        told = os.pread(fd, length, size - TAIL.size - length) if magic == MAGIC and length < MOST_JSON else b""
    except (struct.error, OSError):
        told, digest = b"", b""
    if not told or hashlib.sha256(told).digest() != digest:
        raise BadFile(f"{path} is no expert file, or not whole ({size} bytes); delete it, and it is made again")
    found = json.loads(told)
    if found["made_from"] != made_from:
        raise BadFile(f"{path} holds the experts of {found['made_from']}, not of {made_from}; delete it")
    layers = [LayerRegion.heard(layer) for layer in found["layers"]]
    end = max(part.offset + layer.num_experts * part.bytes for layer in layers for part in layer.parts)
    if end > size - TAIL.size - len(told):
        raise BadFile(f"{path} ends before its last expert; delete it, and it is made again")
    return layers
