"""The model's own vocabulary, and its text as tokens: one flat file of 16-bit ids for each split and kind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.text.documents import SPLITS, documents, split_of
from lynx_moe.testbed.text.sources import KINDS
from lynx_moe.testbed.training.tokenizer import load_or_train_tokenizer

VOCAB_SIZE, SAMPLE_BYTES, PER_DOCUMENT, BATCH = 4096, 10_000_000, 4000, 256


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, trained on the collected training documents first if there is none."""
    return load_or_train_tokenizer(folder / "tokenizer", lambda: _sample(folder), VOCAB_SIZE)


def _sample(folder: Path) -> Iterator[str]:
    """The beginnings of training documents, as many bytes of prose as of code."""
    left = dict.fromkeys(KINDS, SAMPLE_BYTES)
    for document in documents(folder):
        text = document["text"][:PER_DOCUMENT]
        if left[document["kind"]] > 0 and split_of(document["text"]) == "train" and hash_turn(document["text"]):
            left[document["kind"]] -= len(text)
            yield text


def hash_turn(text: str) -> bool:
    """True for about every third document: the sample then reaches all sources."""
    return sum(text[:64].encode()) % 3 == 0


def encode(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write `tokens/SPLIT-KIND.bin`, each document followed by <eos>; made in one move, and not again."""
    if (folder / "tokens").is_dir():
        return
    partial = folder / "tokens.tmp"
    partial.mkdir(exist_ok=True)
    files = {(split, kind): (partial / f"{split}-{kind}.bin").open("wb") for split in SPLITS for kind in KINDS}
    waiting: list[tuple[str, str, str]] = []

    def flush() -> None:
        texts = [text for *_, text in waiting]
        given = {
            "add_special_tokens": False,
            "split_special_tokens": True,
        }  # a text that says "<eos>" does not end there
        encoded = tokenizer(texts, **given)["input_ids"] if waiting else []
        for (split, kind, _), ids in zip(waiting, encoded, strict=True):
            files[split, kind].write(np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16).tobytes())
        waiting.clear()

    for document in documents(folder):
        waiting.append((split_of(document["text"]), document["kind"], document["text"]))
        if len(waiting) == BATCH:
            flush()
    flush()
    for file in files.values():
        file.close()
    partial.rename(folder / "tokens")


def tokens(folder: Path, split: str, kind: str) -> "np.memmap[tuple[int], np.dtype[np.uint16]]":
    """The ids of a split and kind, mapped from the file."""
    return np.memmap(folder / "tokens" / f"{split}-{kind}.bin", dtype=np.uint16, mode="r")
