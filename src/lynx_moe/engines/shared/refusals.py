"""A refusal ends in one line, in whatever process it is spoken.

Some refusals need the built model, which lives in an engine's process: the process that started it then ends with no
more than "initialization failed", and the reason stands in a log far above. The reason travels as a file, in a
directory that all processes know by an environment variable, and becomes what the starting process raises.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lynx_moe.engines.shared.options import KEY

PLACE = "LYNX_MOE_REFUSAL_DIR"
FILE = "reason.txt"
_made: list[tuple[int, tempfile.TemporaryDirectory[str]]] = []  # the process that made it, and the directory


class Refusal(ValueError):
    """The engine does not start with what it was given. One line, for whoever gave it."""


def expect() -> None:
    """In a process that may start an engine, before it does: there is a place for its refusal, and none of an engine
    before. A place that a parent made stays the parent's: its engines' reasons are not this one's."""
    if not any(process == os.getpid() for process, _ in _made):
        _made.append((os.getpid(), tempfile.TemporaryDirectory(prefix="lynx_moe-refusal-")))
    os.environ[PLACE] = _made[-1][1].name
    heard()


def tell(reason: str) -> None:
    """In an engine's process: what it is about to raise. The first reason stays."""
    place = os.environ.get(PLACE)
    if place is None:
        return
    try:
        with (Path(place) / FILE).open("x", encoding="utf-8") as file:
            file.write(reason)
    except OSError:  # another worker was first, or nobody is there to hear
        return


def heard() -> str | None:
    """The reason that an engine gave, once; None: it gave none."""
    place = os.environ.get(PLACE)
    if place is None:
        return None
    file = Path(place) / FILE
    try:
        reason = file.read_text(encoding="utf-8")
        file.unlink()
    except OSError:
        return None
    return reason


@contextmanager
def refusing() -> Iterator[None]:
    """Makes a ValueError of ours a Refusal, told to whoever started this process."""
    try:
        yield
    except ValueError as error:
        reason = str(error) if str(error).startswith(KEY) else f"{KEY}: {error}"
        tell(reason)
        raise Refusal(reason) from None
