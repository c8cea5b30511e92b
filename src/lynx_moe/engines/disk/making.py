"""An expert file in the making: it has no name until it is whole, so that nothing half-written is ever found.

Its regions are mapped into memory as the weights load, and are the parameters that they load into. The kernel may write
such pages to the file whenever it needs their memory, which it could not do with parameters of the usual kind.
"""

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.disk.layout import LayerRegion, Part, aligned, crc, ending

GIB = 2**30
Packed = Sequence[Tensor]


class Region:
    """Of one layer while it loads: `tensors` [E, ...] by part, as the checkpoint has them, in mapped memory."""

    def __init__(self, making: "Making", name: str, loaded: dict[str, Tensor], packed_shapes: dict[str, Any]) -> None:
        """loaded: tensors of what the checkpoint has (their shape and type count); packed_shapes: of one expert, as a
        kernel takes it, which may be larger."""
        parts, offset, start = [], making.end, making.end
        for part, tensor in loaded.items():
            made = Part(
                name=part,
                shape=tuple(packed_shapes[part]),
                dtype=str(tensor.dtype).removeprefix("torch."),
                itemsize=tensor.element_size(),
                offset=offset,
            )
            parts.append(made)
            offset = aligned(offset + len(tensor) * made.bytes)
        self.layout = LayerRegion(name=name, num_experts=len(next(iter(loaded.values()))), parts=tuple(parts))
        making.reserve(offset)
        self.making, self.start, self.end = making, start, offset
        self.memory = mmap.mmap(making.fd, offset - start, offset=start)
        self.tensors = {
            part.name: _view(self.memory, part.offset - start, loaded[part.name].dtype, loaded[part.name].shape)
            for part in parts
        }

    def pack(self, pack: Callable[[dict[str, Tensor]], Packed]) -> None:
        """Every expert as the kernel takes it, in place of what was loaded. `pack` gets the parts of one expert, as
        [1, ...], and returns new tensors. The last expert comes first: packed ones are never smaller, so each is
        written over experts that are done, and over itself."""
        crcs = [0] * self.layout.num_experts
        for expert in reversed(range(self.layout.num_experts)):
            packed = pack({name: tensor[expert : expert + 1] for name, tensor in self.tensors.items()})
            views = [_bytes(tensor) for tensor in packed]
            crcs[expert] = crc(views)
            for (offset, size), view in zip(self.layout.spans(expert), views, strict=True):
                if len(view) != size:
                    raise ValueError(f"{self.layout.name}: a packed expert has {len(view)} bytes, and not {size}")
                self.memory[offset - self.start : offset - self.start + size] = view
        self.layout.crcs.extend(crcs)
        self.memory.flush()
        self.memory.madvise(mmap.MADV_DONTNEED)
        self.tensors = {}
        os.posix_fadvise(self.making.fd, self.start, self.end - self.start, os.POSIX_FADV_DONTNEED)


class NoRoom(ValueError):
    """The disk has no room for the file; the message says how much it takes."""


class Making:
    """A file in this folder, which is gone when nobody has it open any more, unless `finish` gives it a name.

    Raises OSError where the folder takes no file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.end, self.regions = folder, 0, list[Region]()
        folder.mkdir(parents=True, exist_ok=True)
        self.part: Path | None = None
        try:
            self.fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
            self.fd, name = tempfile.mkstemp(prefix=".making-", dir=folder)  # a file system without nameless files
            self.part = Path(name)
        self.discard = weakref.finalize(self, _discard, self.fd, self.part)

    def add(self, name: str, loaded: dict[str, Tensor], packed_shapes: dict[str, Any]) -> Region:
        """The next layer's region. Raises NoRoom where the disk has none for it."""
        self.regions.append(Region(self, name, loaded, packed_shapes))
        return self.regions[-1]

    def reserve(self, end: int) -> None:
        """Takes the disk's space up to there now: a write through mapped memory could not say that there is none."""
        try:
            os.posix_fallocate(self.fd, self.end, end - self.end)
        except OSError as error:
            disk = os.statvfs(self.folder)
            grew, more, free = self.end / GIB, (end - self.end) / GIB, disk.f_bavail * disk.f_frsize / GIB
            raise NoRoom(
                f"the experts' file in {self.folder} grew to {grew:.2f} GiB, and {more:.2f} more find no room "
                f"({free:.2f} GiB free): {os.strerror(error.errno or 0)}; make room, or choose another folder"
            ) from None
        self.end = end

    def finish(self, target: Path | None, made_from: dict[str, Any]) -> None:
        """All layers are packed: the file is whole, and found at `target` from now on. Where another process was
        faster, its file stays, and this one is used without a name. Raises NoRoom where its end finds none."""
        start, told = self.end, ending([region.layout for region in self.regions], made_from)
        self.reserve(start + len(told))  # else a full disk would take a part of it, without a word
        os.pwrite(self.fd, told, start)
        os.fsync(self.fd)
        if self.part is not None:
            self.part.unlink() if target is None else self.part.replace(target)
        elif target is not None:
            self._name(target)

    def _name(self, target: Path) -> None:
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{self.fd}", target.name, dst_dir_fd=folder)  # a symbolic link, which it follows
            os.fsync(folder)
        except FileExistsError:  # another process was faster
            return
        finally:
            os.close(folder)

    @property
    def path(self) -> Path:
        """Where this process can open it, until it is discarded."""
        return Path(f"/proc/self/fd/{self.fd}")


def _discard(fd: int, part: Path | None) -> None:
    os.close(fd)
    if part is not None:
        part.unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _view(memory: mmap.mmap, offset: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=offset).view(shape)
