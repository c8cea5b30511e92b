"""What slots are filled from: experts that a few threads read at once, straight into the slots' memory."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

THREADS = 4


class ReadError(RuntimeError):
    """An expert could not be read, or is not what was written."""


@dataclass(frozen=True)
class Job:
    """One expert of a layer, and the buffers that its parts go to."""

    layer: int
    expert: int
    into: Sequence[memoryview]


class ExpertPart(Protocol):
    """A tensor that every expert of a layer has: `shape` and `bytes` of one of them, its torch dtype by name."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class ExpertLayer(Protocol):
    """The experts of the layer of this name."""

    @property
    def name(self) -> str: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def parts(self) -> Sequence[ExpertPart]: ...


class Source(ABC):
    """`path`: what errors and statistics call it."""

    path: Path

    def __init__(self, threads: int = THREADS) -> None:
        self.pool, self.closed = ThreadPoolExecutor(threads, "lynx_moe experts"), False

    @property
    @abstractmethod
    def layers(self) -> Sequence[ExpertLayer]:
        """By number, as jobs name them."""

    @property
    @abstractmethod
    def direct(self) -> bool:
        """Whether reads pass the page cache by."""

    @abstractmethod
    def _read(self, job: Job) -> int:
        """One expert; returns its bytes. Raises ReadError."""

    def read(self, jobs: Sequence[Job]) -> int:
        """All of these, at once; returns how many bytes they have.

        Raises ReadError if one fails, when all have ended: their buffers then hold anything.
        """
        if self.closed:
            raise ReadError(f"experts of {self.path} cannot be read any more: it was closed; open the model again")
        if len(jobs) == 1:
            return self._read(jobs[0])
        futures = [self.pool.submit(self._read, job) for job in jobs]
        try:
            errors = [error for error in (future.exception() for future in futures) if error is not None]
        finally:  # also at Ctrl-C: no read may go on into a buffer that another expert gets next
            wait(futures)
        if errors:
            raise errors[0]
        return sum(future.result() for future in futures)

    def close(self) -> None:
        """Waits for reads that run; later ones end with a ReadError."""
        self.closed = True
        self.pool.shutdown()


def fill(fd: int, view: memoryview, offset: int, what: str, advice: str = "") -> None:
    """The whole buffer, from there on. Raises ReadError, which begins with `what`."""
    done = 0
    while done < len(view):
        try:
            read = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise ReadError(f"{what} cannot be read: {error.strerror}") from error
        if read == 0:
            raise ReadError(f"{what} is gone: the file ends early{advice}")
        done += read
