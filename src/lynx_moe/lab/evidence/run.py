"""Commands one after another: each in a process of its own, and what has ended well is not done again."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import typer


class Finished:
    """The commands that ended well, a line each in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.commands = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()

    def add(self, command: str) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{command}\n")
        self.commands.add(command)
        return True


def run(command: str) -> bool:
    """Whether it went well. Its own words go to the terminal, or into the file behind `>`."""
    program, _, file = command.partition(" > ")
    first, *words = shlex.split(program)
    head = [sys.executable, "-m", "lynx_moe.cli"] if first == "lynx-moe" else [sys.executable]
    begun = time.monotonic()
    if not file:
        good = subprocess.run([*head, *words]).returncode == 0
    else:
        target = Path(shlex.split(file)[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("w", encoding="utf-8") as kept:
            good = subprocess.run([*head, *words], stdout=kept).returncode == 0
    typer.echo(f"  {(time.monotonic() - begun) / 60:.1f} min: {command}")
    return good
