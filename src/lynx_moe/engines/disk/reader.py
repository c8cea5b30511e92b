"""Reads experts of a file that was made for them, past the page cache where the file system lets one (O_DIRECT)."""

import errno
import os
import weakref
from pathlib import Path
from typing import Any

from lynx_moe.engines.disk.layout import BLOCK, LayerRegion, crc, read_layers
from lynx_moe.engines.disk.source import THREADS, Job, ReadError, Source, fill


class Reader(Source):
    """An open expert file, which stays readable when its name is gone.

    Raises FileNotFoundError where there is none, and BadFile as `read_layers` does. `direct` says whether reads pass
    the page cache by, `indirect` why not.
    """

    def __init__(self, path: Path, made_from: dict[str, Any], threads: int = THREADS) -> None:
        self.path, self.indirect = path, ""
        self.fd = os.open(path, os.O_RDONLY)
        try:
            self.regions = read_layers(self.fd, path, made_from)
            self._pass_by_the_cache()
        except BaseException:
            os.close(self.fd)
            raise
        self.close_file = weakref.finalize(self, os.close, self.fd)  # once: also when nobody has closed it
        self.checked: list[set[int]] = [set() for _ in self.layers]
        super().__init__(threads)

    @property
    def layers(self) -> list[LayerRegion]:
        return self.regions

    @property
    def direct(self) -> bool:
        return not self.indirect

    def close(self) -> None:
        """Waits for reads that run."""
        super().close()
        self.close_file()

    def _read(self, job: Job) -> int:
        region = self.layers[job.layer]
        named = f"expert {job.expert} of {region.name} in {self.path}"
        for (offset, size), view in zip(region.spans(job.expert), job.into, strict=True):
            fill(self.fd, view, offset, named, "; delete it, and it is made again")
            if self.indirect:
                os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_DONTNEED)
        if job.expert not in self.checked[job.layer]:  # later reads of it trust the disk
            if crc(job.into) != region.crcs[job.expert]:
                raise ReadError(f"{named} is damaged; delete the file, and it is made again")
            self.checked[job.layer].add(job.expert)
        return region.expert_bytes

    def _pass_by_the_cache(self) -> None:
        odd = {part.bytes for region in self.layers for part in region.parts if part.bytes % BLOCK}
        if odd:
            self.indirect = f"parts of {min(odd)} bytes are no multiple of {BLOCK}"
            return
        try:
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.indirect = "its file system knows no O_DIRECT"
            return
        os.close(self.fd)
        self.fd = fd
