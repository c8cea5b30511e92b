"""Numbers of workers on other machines, on their way to the API server: by the store that torch's processes share.

A worker on the first rank's machine writes a file, which the server reads (`exporter.py`). A worker elsewhere puts the
same text into the store. The first rank takes it out, and writes the file in its place. Nobody waits for anybody: each
side has a thread and a connection of its own, a key is looked for before it is read, and who dies changes nothing any
more, so that its file grows old.
"""

import itertools
import json
import os
import socket
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.tell.exporter import DIRECTORY, File

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is: the `rank`th of `size` that share a `store`. near: what it writes to a file is read where the
    first rank's files are. instance: the engine's name, which machines would otherwise make up each for itself."""

    instance: str
    store: Any = None
    rank: int = 0
    size: int = 1
    near: bool = True


def here() -> str:
    """The same where two processes can hand files to each other in the directory of metrics."""
    boot = BOOT.read_text(encoding="utf-8").strip() if BOOT.exists() else ""
    return " ".join((socket.gethostname(), boot, os.environ.get(DIRECTORY, "")))


def key(rank: int) -> str:
    return f"{KEY}/told/{rank}"


class Key:
    """Where a worker on another machine writes: a `Target` as `File` is one."""

    def __init__(self, store: Any, rank: int) -> None:
        self.store, self.name = store, key(rank)
        self.text, self.beats = "", itertools.count()

    def __str__(self) -> str:
        return f"the store's key {self.name}"

    def write(self, text: str) -> None:
        self.text = text
        self.store.set(self.name, json.dumps([next(self.beats), text]))

    def touch(self) -> bool:
        self.write(self.text)
        return True

    def remove(self) -> None:
        """What nobody changes is left out after a while."""


class Relay:
    """On the first rank: the files of the workers on other machines, in `folder`, while `owner` lives."""

    def __init__(self, store: Any, ranks: range, folder: Path, name: str, every: float) -> None:
        self.store, self.ranks, self.every = store, ranks, every
        self.files = {rank: File(folder / f"{name}-{rank}.json") for rank in ranks}
        self.seen: dict[int, bytes] = {}
        self.ended = threading.Event()

    def start(self, owner: Any) -> None:
        weakref.finalize(owner, self.ended.set)
        threading.Thread(target=self.run, name="lynx_moe relay", daemon=True).start()

    def run(self) -> None:
        while not self.ended.wait(self.every):
            try:
                self.look()
            except (OSError, RuntimeError, ValueError):  # a disk that is full, a store whose process has ended
                continue
        for file in self.files.values():
            file.remove()

    def look(self) -> None:
        """Writes what has changed. Raises OSError, and RuntimeError where the store is gone."""
        for rank in self.ranks:
            if not self.store.check([key(rank)]):
                continue
            told = self.store.get(key(rank))
            if told != self.seen.get(rank):
                _, text = json.loads(told)
                self.files[rank].write(text)
                self.seen[rank] = told
