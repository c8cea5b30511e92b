"""Documents: which split each belongs to, which paragraphs are kept, and the file that holds them all."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lynx_moe.testbed.tasks import split
from lynx_moe.testbed.text.fetch import fetch
from lynx_moe.testbed.text.readers import READERS, find
from lynx_moe.testbed.text.sources import SOURCES, Source

SPLITS = ("train", *split.SPLITS)
MIN_BYTES, MIN_WORDS, MIN_LETTERS, SHORT = 400, 6, 0.85, 40
FILE = "documents.jsonl.gz"


def split_of(document: str) -> str:
    """`train` for fifteen documents in sixteen; the rest are `calibrate`, `tune` or `test`, as everywhere here."""
    return split.split_of(document) if split.is_held_out(document) else "train"


def is_prose(paragraph: str) -> bool:
    """Enough words, nearly all of it letters and plain punctuation."""
    letters = sum(c.isalpha() or c in " ,.'\n" for c in paragraph)
    return len(paragraph.split()) >= MIN_WORDS and letters >= MIN_LETTERS * len(paragraph)


def tidy(source: Source, text: str, seen: set[bytes]) -> str:
    """The paragraphs of `text` that are worth keeping and that no earlier document had; `seen` learns them."""
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n+", text.replace("\r", "").replace("\t", "    ")):
        paragraph = re.sub(r"[ \n]+", " ", paragraph).strip() if source.kind == "prose" else paragraph.rstrip()
        if not paragraph.strip() or (source.kind == "prose" and not is_prose(paragraph)):
            continue
        mark = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=12).digest()
        if len(paragraph) >= SHORT and mark in seen:
            continue
        seen.add(mark)
        kept.append(paragraph)
    return "\n\n".join(kept)


def collect(
    folder: Path, sources: Iterable[Source] = SOURCES, tell: Callable[[str], object] = print
) -> list[dict[str, Any]]:
    """Fetch all sources and write `documents.jsonl.gz` in `folder`, in one move; returns what each source gave.

    A collection that is finished is not made again. Raises SourceMissing, having kept what was fetched.
    """
    facts_file = folder / "sources.json"
    if (folder / FILE).is_file() and facts_file.is_file():
        found: list[dict[str, Any]] = json.loads(facts_file.read_text(encoding="utf-8"))
        return found
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    facts = []
    with gzip.open(folder / f"{FILE}.tmp", "wt", compresslevel=3, encoding="utf-8") as out:
        for source in sources:
            root = fetch(source, folder / "packages")
            number, size = 0, 0
            for text in READERS[source.reader](find(root, source.files)):
                document = tidy(source, text, seen)
                if len(document) >= MIN_BYTES:
                    out.write(json.dumps({"source": source.name, "kind": source.kind, "text": document}) + "\n")
                    number, size = number + 1, size + len(document.encode())
            if not number:
                raise LookupError(f"{source.name} gave no document: no file of it matches {source.files!r}")
            known = {"name": source.name, "kind": source.kind, "licence": source.licence, "via": source.via}
            facts.append({**known, "documents": number, "bytes": size})
            tell(f"{source.name}: {number:,} documents, {size / 1e6:.1f} MB of {source.kind}")
    facts_file.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / f"{FILE}.tmp").replace(folder / FILE)
    return facts


def documents(folder: Path) -> Iterator[dict[str, str]]:
    """The collected documents, each `source`, `kind` and `text`."""
    with gzip.open(folder / FILE, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
