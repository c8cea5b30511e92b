"""Reads experts by a few threads at once, past the page cache where the file system lets one (O_DIRECT)."""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_moe.engines.disk.layout import BLOCK, LayerRegion, crc, read_layers

THREADS = 4


class ReadError(RuntimeError):
    """An expert could not be read, or is not what was written."""


@dataclass(frozen=True)
class Job:
    """One expert of a layer, and the buffers that its parts go to."""

    layer: int
    expert: int
    into: Sequence[memoryview]


class Reader:
    """An open expert file, which stays readable when its name is gone.

    Raises FileNotFoundError where there is none, and BadFile as `read_layers` does. `direct` says whether reads pass
    the page cache by, `indirect` why not.
    """

    def __init__(self, path: Path, made_from: dict[str, Any], threads: int = THREADS) -> None:
        self.path, self.indirect = path, ""
        self.fd = os.open(path, os.O_RDONLY)
        try:
            self.layers = read_layers(self.fd, path, made_from)
            self._pass_by_the_cache()
        except BaseException:
            os.close(self.fd)
            raise
        self.checked: list[set[int]] = [set() for _ in self.layers]
        self.pool = ThreadPoolExecutor(threads, "lynx_moe experts")

    @property
    def direct(self) -> bool:
        return not self.indirect

    def read(self, jobs: Sequence[Job]) -> int:
        """All of these, at once; returns how many bytes they have.

        Raises ReadError if one fails, when all have ended: their buffers then hold anything.
        """
        if len(jobs) == 1:
            return self._read(jobs[0])
        futures = [self.pool.submit(self._read, job) for job in jobs]
        errors = [error for error in (future.exception() for future in futures) if error is not None]
        if errors:
            raise errors[0]
        return sum(future.result() for future in futures)

    def close(self) -> None:
        """Waits for reads that run."""
        self.pool.shutdown()
        os.close(self.fd)

    def _read(self, job: Job) -> int:
        region = self.layers[job.layer]
        for (offset, size), view in zip(region.spans(job.expert), job.into, strict=True):
            done = 0
            while done < size:
                done += self._some(region, job.expert, view[done:], offset + done)
            if self.indirect:
                os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_DONTNEED)
        if job.expert not in self.checked[job.layer]:  # later reads of it trust the disk
            if crc(job.into) != region.crcs[job.expert]:
                raise ReadError(f"{self._named(region, job.expert)} is damaged; delete the file, and it is made again")
            self.checked[job.layer].add(job.expert)
        return region.expert_bytes

    def _some(self, region: LayerRegion, expert: int, view: memoryview, offset: int) -> int:
        try:
            read = os.preadv(self.fd, [view], offset)
        except OSError as error:
            raise ReadError(f"{self._named(region, expert)} cannot be read: {error.strerror}") from error
        if read == 0:
            raise ReadError(
                f"{self._named(region, expert)} is gone: the file ends early; delete it, and it is made again"
            )
        return read

    def _named(self, region: LayerRegion, expert: int) -> str:
        return f"expert {expert} of {region.name} in {self.path}"

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
