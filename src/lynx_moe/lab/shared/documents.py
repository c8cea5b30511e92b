"""Documents to decode along: a prefix that is prefilled, and the true continuation; and how they share batches.

A split keeps apart what is calibrated on, what knobs are chosen on, and what is reported on. A hash of the document
decides who belongs where, before it is cut: no size that a command asks for moves anything from one split to another.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from random import Random
from typing import Any

from lynx_moe.lab.shared.texts import BLOCK, streams
from lynx_moe.testbed.tasks import TASKS, Item, test_items, train_item
from lynx_moe.testbed.tasks.split import SPLITS as PARTS
from lynx_moe.testbed.tasks.split import is_held_out, split_of

MIXES = ("one", "mixed")
SPLITS = ("all", *PARTS)
MIN_STEPS = 4


@dataclass(frozen=True)
class Document:
    """Tokens to prefill, one or more, and their true continuation. `group` is a task, a file, a language; batches may
    keep to one."""

    group: str
    prefix: tuple[int, ...]
    rest: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prefix:
            raise ValueError(f"a document of {self.group!r} has an empty prompt: there is no token to go on from")


@dataclass(frozen=True)
class Batch:
    """B sequences, all of which go on for `num_steps` + 1 tokens; the last one is predicted, never fed."""

    members: tuple[Document, ...]
    num_steps: int


def complain(message: str) -> None:
    """Says on standard error what was left out."""
    print(f"lynx-moe: {message}", file=sys.stderr)


def from_testbed(tokenizer: Any, num_sequences: int, seed: int, split: str = "all") -> list[Document]:
    """Exercises, equally many of every task: the prompt, and the right answer with its end. They are held out, all of
    them or those of `split`; for "calibrate" they are drawn as those of training were."""
    from lynx_moe.testbed.training.data import encode_item

    def items(task: str, num: int) -> list[Item]:
        if split == "calibrate":
            rng = Random(f"calibrate/{task}/{seed}")
            return [train_item(task, rng) for _ in range(num)]
        return test_items(task, num, seed, lambda prompt: is_held_out(prompt) and split in ("all", split_of(prompt)))

    found = []
    for task in TASKS:
        for item in items(task, max(1, num_sequences // len(TASKS))):
            ids, given = encode_item(item, tokenizer)
            found.append(Document(task, tuple(ids[:given]), tuple(ids[given:])))
    return found


def from_file(
    path: Path,
    tokenizer: Any,
    num_sequences: int,
    num_prefix: int,
    num_steps: int,
    split: str = "all",
    tell: Callable[[str], None] = complain,
) -> list[Document]:
    """The first sequences of `path`, of those in `split`; `texts` says which files there are.

    A prompt is kept, and its continuation cut to `num_steps` + 1 tokens. Text is cut into `num_prefix` tokens of prefix
    and `num_steps` + 1 of continuation; what is shorter is left out. Only what is needed is tokenised. A document
    belongs to a split by its prompt, or else its text; running text by the block, and no window crosses the edge of a
    split. Empty prompts are left out, and `tell` is told how many.

    Raises ValueError for a file that cannot be read, is malformed, or holds nothing long enough or nothing in `split`.
    """
    found: list[Document] = []
    seen: Counter[str] = Counter()  # documents or blocks by split
    empty = 0

    def belongs(text: str) -> bool:
        seen[own := split_of(text)] += 1
        return split in ("all", own)

    for group, prompt, pieces in streams(path, belongs):
        if prompt is None:
            new = windows(tokens(tokenizer, pieces), num_prefix + num_steps + 1)
            new = islice(new, num_sequences - len(found))
            found += [Document(group, window[:num_prefix], window[num_prefix:]) for window in new]
        elif first := tuple(tokenizer(prompt)["input_ids"]):
            rest = tuple(islice(tokens(tokenizer, pieces, special=False), max(num_steps, MIN_STEPS) + 1))
            found += [Document(group, first, rest[: num_steps + 1])] if len(rest) > MIN_STEPS else []
        else:
            empty += 1
        if len(found) >= num_sequences:
            break
    if empty and found:
        tell(f"{path}: {empty} documents with an empty prompt are left out; there is no token to go on from")
    if not found:
        raise ValueError(_nothing(path, f"{num_prefix} + {num_steps + 1}", split, seen, empty))
    return found


def tokens(tokenizer: Any, pieces: Iterable[str], special: bool = True) -> Iterator[int]:
    """The tokens of a text in pieces, each piece tokenised when its first token is asked for."""
    for piece in pieces:
        yield from tokenizer(piece, add_special_tokens=special)["input_ids"]
        special = False


def windows(ids: Iterator[int], size: int) -> Iterator[tuple[int, ...]]:
    """`size` tokens at a time; what is left at the end is dropped."""
    while len(window := tuple(islice(ids, size))) == size:
        yield window


def _nothing(path: Path, size: str, split: str, seen: Counter[str], empty: int) -> str:
    """Why a file gave no document."""
    total, here = sum(seen.values()), sum(seen.values()) if split == "all" else seen[split]
    if total and not here:
        return (
            f"{path} holds nothing in split {split!r}: a hash puts each of its {total} documents (blocks of {BLOCK} "
            f"characters of running text) into {', '.join(sorted(seen))}; give more data, or take split 'all'"
        )
    if empty and empty == here:
        return (
            f"all {here} documents of {path} in split {split!r} have an empty prompt: there is no token to go on from"
        )
    return f"{path} holds no text of {size} tokens (split {split}); lower --prefix or --steps, or give longer text"


def batches(sequences: Sequence[Document], batch_size: int, mix: str, seed: int) -> list[Batch]:
    """Batches of exactly `batch_size`, of one group each ("one") or of all ("mixed"); what is left over is dropped.

    Sequences of like length go together, so that each batch can end with its shortest member and loses little: the
    number of rows never falls while it decodes. Among equal lengths the order is drawn with `seed`.
    """
    rng = Random(f"batches/{seed}")
    drawn = sorted(sequences, key=lambda sequence: (len(sequence.rest), rng.random()))
    if mix == "one":
        drawn.sort(key=lambda sequence: sequence.group)
        groups = [list(members) for _, members in groupby(drawn, key=lambda sequence: sequence.group)]
    else:
        groups = [drawn]
    cuts = [g[i : i + batch_size] for g in groups for i in range(0, len(g) - batch_size + 1, batch_size)]
    return [Batch(tuple(cut), min(len(member.rest) for member in cut) - 1) for cut in cuts]
