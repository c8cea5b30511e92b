"""What an expert file was made from: the checkpoint, by a digest of its files that is quick to take."""

import hashlib
import os
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin")
SAMPLE, EVERY = 2**16, 2**24  # bytes that are looked at, and how far they lie apart
WHOLE = 2**31  # bytes of a checkpoint that is read from end to end: a few seconds


def digest(folder: Path) -> str | None:
    """SHA-256 over config.json and the weight files, by name, size and contents; None where the folder has no weights.

    Of a large checkpoint a sample of the contents counts, and when its files were changed last.
    """
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    if not files:
        return None
    found = hashlib.sha256()
    config = folder / "config.json"
    found.update(config.read_bytes() if config.exists() else b"")
    sizes = {path: path.stat().st_size for path in files}
    every = SAMPLE if sum(sizes.values()) <= WHOLE else EVERY
    for path, size in sizes.items():
        changed = path.stat().st_mtime_ns if every != SAMPLE else 0
        found.update(f"{path.name} {size} {changed}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, every):
                found.update(os.pread(file.fileno(), SAMPLE, start))
    return found.hexdigest()


def default_folder() -> Path:
    """Where expert files lie if nobody says otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lynx_moe" / "experts"
