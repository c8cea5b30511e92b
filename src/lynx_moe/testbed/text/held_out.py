"""Held-out documents that travel with the weights, so that a card can be checked where the sources are not."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lynx_moe.testbed.text.documents import documents, split_of
from lynx_moe.testbed.text.sources import KINDS

FILE = "held_out.jsonl"
SHIPPED_PER_KIND, SHIPPED_BYTES = 24, 1600

Document = dict[str, str]


def held_out_documents(folder: Path, per_kind: int) -> dict[str, list[Document]]:
    """The first `per_kind` collected documents of the split `test`, of each kind, in the order of their SHA-256."""
    found: dict[str, list[Document]] = {kind: [] for kind in KINDS}
    for document in documents(folder):
        if split_of(document["text"]) == "test":
            found[document["kind"]].append(document)
    return {kind: _by_hash(of)[:per_kind] for kind, of in found.items()}


def to_ship(found: dict[str, list[Document]]) -> list[Document]:
    """Whole short documents, so that whoever has them can tell that they are held out: `split_of` hashes all of one."""
    short = {kind: [d for d in of if len(d["text"].encode()) <= SHIPPED_BYTES] for kind, of in found.items()}
    return [document for kind in KINDS for document in short[kind][:SHIPPED_PER_KIND]]


def write(documents: Iterable[Document], folder: Path) -> None:
    """Write `held_out.jsonl`."""
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / FILE).write_text(lines, encoding="utf-8")


def read(folder: Path) -> list[Document]:
    """The documents that came with the model in `folder`."""
    return [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]


def _by_hash(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: hashlib.sha256(document["text"].encode()).hexdigest())
