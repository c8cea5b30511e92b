"""Held-out documents, and those that travel with the weights: for whoever has no sources, to check and to measure with.

`held_out.jsonl` is what `--data` of the lab's commands reads, and they split it as it was split here.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lynx_moe.testbed.tasks.split import HELD_OUT
from lynx_moe.testbed.text.documents import documents, split_of
from lynx_moe.testbed.text.sources import KINDS

SHIPPED = {"calibrate": 70, "tune": 80, "test": 150}  # documents of each kind
SHIPPED_BYTES = 6000  # of the longest

Document = dict[str, str]


def held_out_documents(folder: Path) -> list[Document]:
    """The collected documents that are not for training, in the order of their SHA-256."""
    found = [document for document in documents(folder) if split_of(document["text"]) != "train"]
    return sorted(found, key=lambda document: hashlib.sha256(document["text"].encode()).hexdigest())


def first(found: Iterable[Document], split: str, kind: str, number: int) -> list[Document]:
    """The first `number` of a split and kind."""
    return [d for d in found if d["kind"] == kind and split_of(d["text"]) == split][:number]


def to_ship(found: list[Document]) -> list[Document]:
    """Whole documents that are not long: `split_of` hashes all of one, so that whoever has one can tell its split."""
    short = [document for document in found if len(document["text"].encode()) <= SHIPPED_BYTES]
    return [d for split, number in SHIPPED.items() for kind in KINDS for d in first(short, split, kind, number)]


def write(documents: Iterable[Document], folder: Path) -> None:
    """Write `held_out.jsonl`."""
    rows = ({"group": d["kind"], "source": d["source"], "text": d["text"]} for d in documents)
    (folder / HELD_OUT).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path) -> list[Document]:
    """The documents that came with the model in `folder`."""
    rows = map(json.loads, (folder / HELD_OUT).read_text(encoding="utf-8").splitlines())
    return [{"kind": row["group"], "source": row["source"], "text": row["text"]} for row in rows]
