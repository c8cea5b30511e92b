"""The worker's half of the metrics: a plan's numbers, written to a file every second for the server to read.

An engine is another process than its API server, and has no way to carry a plug-in's numbers there: the statistics
that travel with each step have fixed fields, and a call into the workers would wait for the step that runs. So numbers
travel as prometheus_client's own multi-process mode does it, by files in a directory that all processes know, but a
directory of their own: the engine's metrics stay as they are. A thread of its own writes; no step waits for it.
A worker that has no such directory writes elsewhere (`Target`).
"""

import json
import logging
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from lynx_moe.engines.shared.step.deciding import Deciding
from lynx_moe.engines.shared.tell.samples import Sample

logger = logging.getLogger("vllm.lynx_moe")
DIRECTORY = "LYNX_MOE_METRICS_DIR"  # an environment variable, which workers in other processes inherit


@dataclass(frozen=True, kw_only=True)
class Teller:
    """Who tells: the labels that all samples of this worker share, and the engine that it is a worker of. `since` is
    when it was made, in seconds of the system's clock, `every` how many seconds pass between two of its words."""

    labels: dict[str, str]
    instance: str
    since: float
    every: float


def write_on(writer: "Writer", owner: Any) -> None:
    """Makes the thread, which ends with `owner`; then its file goes too."""
    weakref.finalize(owner, writer.end)
    thread = threading.Thread(target=writer.run, name="lynx_moe metrics", daemon=True)
    thread.start()


class Target(Protocol):
    """Where a worker's words go."""

    def write(self, text: str) -> None:
        """In place of what stood there. Raises OSError or RuntimeError."""

    def touch(self) -> bool:
        """Says that this process is alive; False: what was written is gone."""

    def remove(self) -> None:
        """Nothing is told any more. Never raises."""


class File:
    """Where a worker on the server's machine writes. The old file is replaced whole; the directory is made again where
    somebody has cleared it away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, text: str) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)

    def touch(self) -> bool:
        """The time of the file says that this process is alive; it also keeps away who clears up what is old."""
        try:
            os.utime(self.path)
        except OSError:
            return False
        return True

    def remove(self) -> None:
        for path in (self.path, self.path.with_suffix(".part")):
            try:
                path.unlink(missing_ok=True)
            except OSError:  # it grows old, and is left out then
                continue


class Writer:
    """What one plan tells, which it holds no longer than others do; `samples` are its numbers. to: None is a file in
    the directory."""

    def __init__(
        self, plan: Deciding, teller: Teller, samples: Callable[[Any], list[Sample]], to: Target | None = None
    ) -> None:
        self.plan, self.teller, self.samples = weakref.ref(plan), teller, samples
        self.target = to or File(Path(os.environ[DIRECTORY]) / f"{os.getpid()}-{id(plan)}.json")
        self.ended = threading.Event()
        self.seen: Any = None
        self.warned: set[str] = set()

    def run(self) -> None:
        self.tell()
        while not self.ended.wait(self.teller.every):
            self.tell()
        self.target.remove()

    def end(self) -> None:
        """Called wherever the owner is collected, so it waits for nothing."""
        self.ended.set()
        self.target.remove()

    def tell(self) -> None:
        """Writes what is new, or says that nothing is. Never raises: what hinders it may pass."""
        plan = self.plan()
        if plan is None:
            return
        try:
            now = plan.version
            if now != self.seen or not self.target.touch():
                self._write(plan)
            self.seen = now
        except Exception as error:  # without its thread a worker is never heard of again
            self.target.remove()  # rather nothing than old numbers
            self._warn(error)

    def _write(self, plan: Deciding) -> None:
        self.target.write(json.dumps({"teller": asdict(self.teller), "samples": self.samples(plan)}))

    def _warn(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        if reason not in self.warned:
            self.warned.add(reason)
            logger.warning(
                "lynx_moe: %s cannot be written (%s), so /metrics lacks this worker; tried again every %g s",
                self.target,
                reason,
                self.teller.every,
            )
