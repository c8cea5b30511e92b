"""A checkpoint's safetensors, by their headers: where every tensor lies. Nothing is mapped into memory.

The format: https://github.com/huggingface/safetensors#format. Eight bytes say how long the JSON after them is, which
says of each tensor its type, shape and place in the bytes behind it.
"""

import json
import os
import struct
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.disk.source import ReadError, fill

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MOST_HEADER = 10**8  # bytes, as the format allows
DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class BadCheckpoint(ValueError):
    """The folder has no checkpoint that can be read; the message says why, and what to do."""


class File:
    """One open safetensors file, which stays readable when its name is gone.

    Raises BadCheckpoint where it is missing, cut short, or none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BadCheckpoint(f"{path} cannot be opened: {error.strerror}; fetch the checkpoint again") from error
        try:
            self.stamp = self._now()
            self.tensors, self.start = self._header()
        except BaseException:
            os.close(self.fd)
            raise
        self.close = weakref.finalize(self, os.close, self.fd)  # once: also when nobody has called it

    def fill(self, view: memoryview, offset: int, what: str) -> None:
        """The whole buffer, from this place on. Raises ReadError, also where the file is not what was opened."""
        if self._now() != self.stamp:
            raise ReadError(f"{what} cannot be read: the file was changed after the model had been opened")
        fill(self.fd, view, offset, what)

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self.fd)
        return found.st_size, found.st_mtime_ns

    def _header(self) -> tuple[dict[str, Any], int]:
        size = self.stamp[0]
        try:
            (length,) = struct.unpack("<Q", os.pread(self.fd, 8, 0))
            if length > MOST_HEADER:
                raise ValueError
            told = json.loads(os.pread(self.fd, length, 8))
            tensors = {name: one for name, one in told.items() if name != "__metadata__"}
            end = 8 + length + max((one["data_offsets"][1] for one in tensors.values()), default=0)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError):
            raise BadCheckpoint(
                f"{self.path} is no safetensors file, or its head is damaged; fetch the checkpoint again"
            ) from None
        if end > size:
            raise BadCheckpoint(f"{self.path} is cut short: {size} bytes of {end}; fetch the checkpoint again")
        return tensors, 8 + length


@dataclass(frozen=True)
class Stored:
    """A tensor: `shape`, torch dtype by name (or as the file says, where torch has none), and where its bytes lie."""

    file: File
    shape: tuple[int, ...]
    dtype: str
    offset: int
    bytes: int


class Checkpoint:
    """The tensors of a local folder by name: those of model.safetensors, or of the shards that its index names.

    Raises BadCheckpoint where the folder, a shard or a tensor is missing, or a file is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, list[File]()
        if not (folder / "config.json").is_file():
            raise BadCheckpoint(
                f"{folder} is no folder of a model, with a config.json; give a local one (`hf download MODEL "
                "--local-dir FOLDER` fetches it)"
            )
        try:
            self.tensors = self._listed()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> Tensor:
        """A whole tensor, in new memory. Raises ReadError."""
        stored = self.tensors[name]
        memory = torch.empty(stored.bytes, dtype=torch.uint8)
        stored.file.fill(memoryview(memory.numpy()), stored.offset, f"{name} in {stored.file.path}")  # type: ignore[arg-type]
        return memory.view(getattr(torch, stored.dtype)).view(stored.shape)

    def close(self) -> None:
        """Nothing can be read any more."""
        while self.files:
            self.files.pop().close()

    def _listed(self) -> dict[str, Stored]:
        index, single = self.folder / INDEX, self.folder / SINGLE
        if index.is_file():
            try:
                named: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
                shards = sorted(set(named.values()))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadCheckpoint(f"{index} names no shards; fetch the checkpoint again") from None
        elif single.is_file():
            shards, named = [SINGLE], {}
        else:
            raise BadCheckpoint(
                f"{self.folder} has neither {SINGLE} nor {INDEX}: single experts are read from safetensors alone"
            )
        found: dict[str, Stored] = {}
        for shard in shards:
            found |= self._of(shard)
        self._check(named, found)
        return found

    def _of(self, shard: str) -> dict[str, Stored]:
        self.files.append(File(self.folder / shard))
        file, found = self.files[-1], {}
        for name, one in file.tensors.items():
            first, last = one["data_offsets"]
            dtype = DTYPES.get(one["dtype"], one["dtype"])
            found[name] = Stored(file, tuple(one["shape"]), dtype, file.start + first, last - first)
        return found

    def _check(self, named: dict[str, str], found: Collection[str]) -> None:
        lost = next((name for name in named if name not in found), None)
        if lost is not None:
            raise BadCheckpoint(
                f"{self.folder / named[lost]} has no {lost}, which {INDEX} says it has; fetch the checkpoint again"
            )
