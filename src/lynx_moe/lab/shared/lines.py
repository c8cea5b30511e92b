"""Records that grow: JSONL files of one line of settings, then a line per result; a run that was stopped goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.shared import record
from lynx_moe.policies import make_policy

Record = dict[str, Any]


def specs_of(policies: Sequence[str]) -> list[str]:
    """Their full specs. Raises ValueError for a bad one, for none at all, and where two are the same."""
    specs = [make_policy(policy).spec for policy in policies]
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"name at least one policy, and each of them once; given: {', '.join(specs) or 'none'}")
    return specs


def begin(path: Path, kind: str, settings: Mapping[str, Any]) -> Record:
    """The record at `path`, or a new one without results where there is no file.

    Raises ValueError if the file is no such record, or was made with other settings, weights or versions.
    """
    environment = record.environment()
    now = json.loads(json.dumps({**settings, "weights": _weights(Path(settings["model"]))}))
    now.setdefault("versions", environment["versions"])
    if not path.exists():
        return {"kind": kind, "settings": now, "environment": environment, "results": []}
    whole = load(path, kind)
    for name, value in now.items():
        if (before := whole["settings"].get(name)) != value:
            raise ValueError(f"{path} was made with {name}={before!r}, now it is {value!r}; give another --out")
    return whole


def load(path: Path, *kinds: str) -> Record:
    """The record of a JSONL file: `kind`, `settings`, `environment`, `results`.

    Raises ValueError if the file is none, or of a kind that is not among `kinds`.
    """
    try:
        first, *results = map(json.loads, path.read_text(encoding="utf-8").strip().split("\n"))
        whole = {**{key: first[key] for key in ("kind", "settings", "environment")}, "results": results}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a readable record of lynx-moe: {error}") from None
    if whole["kind"] not in kinds:
        raise ValueError(f"{path} is a record of kind {whole['kind']!r}, not {' or '.join(kinds)}")
    return whole


def save(whole: Record, path: Path) -> None:
    """Writes the record; an old file is replaced whole or not at all."""
    first = {key: value for key, value in whole.items() if key != "results"}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in [first, *whole["results"]]), encoding="utf-8")
    part.replace(path)


def _weights(folder: Path) -> int | None:
    """Seconds since 1970 when the newest weights of a folder were written; None for a model of the hub."""
    times = [int(file.stat().st_mtime) for file in folder.glob("*.safetensors")]
    return max(times, default=None)
