"""Documents to decode along: a prefix that is prefilled, and the true continuation; and how they share batches.

A split keeps apart what is calibrated on, what knobs are chosen on, and what is reported on. Who belongs where is
decided by a hash of the prompt or prefix, so no two commands and no two machines disagree.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

from lynx_moe.testbed.tasks import TASKS, Item, is_held_out, test_items, train_item

MIXES = ("one", "mixed")
SPLITS = ("all", "calibrate", "tune", "test")
MIN_STEPS = 4


@dataclass(frozen=True)
class Document:
    """Tokens to prefill and their true continuation. `group` is a task, a file, a language; batches may keep to one."""

    group: str
    prefix: tuple[int, ...]
    rest: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """B sequences, all of which go on for `num_steps` + 1 tokens; the last one is predicted, never fed."""

    members: tuple[Document, ...]
    num_steps: int


def split_of(text: str) -> str:
    """ "test" for half of all texts, "tune" and "calibrate" for a quarter each.

    The first byte of the digest is left out: it says which exercises are held out (`testbed.tasks.is_held_out`).
    """
    return ("test", "tune", "test", "calibrate")[hashlib.sha256(text.encode()).digest()[1] % 4]


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
    path: Path, tokenizer: Any, num_sequences: int, num_prefix: int, num_steps: int, split: str = "all"
) -> list[Document]:
    """The first sequences of `path`, of those in `split`: of a `.jsonl` file a line each, `{"prompt", "continuation",
    "group"}` or `{"text", "group"}`, `group` being optional; of any other file a window of running text each.

    Text is cut into `num_prefix` tokens of prefix and `num_steps` + 1 of continuation; what is shorter is left out.
    Raises ValueError for a file that cannot be read, is malformed, or holds nothing long enough.
    """
    try:
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    found = []
    for group, prompt, rest in _documents(path, content, tokenizer):
        if rest is None:
            size = num_prefix + num_steps + 1
            windows = [prompt[i : i + size] for i in range(0, len(prompt) - size + 1, size)]
            new = [Document(group, tuple(w[:num_prefix]), tuple(w[num_prefix:])) for w in windows]
        else:
            new = [Document(group, tuple(prompt), tuple(rest[: num_steps + 1]))] if len(rest) > MIN_STEPS else []
        found += [one for one in new if split in ("all", split_of(str(one.prefix)))]
        if len(found) >= num_sequences:
            return found[:num_sequences]
    if not found:
        what = f"{path} holds no text of {num_prefix} + {num_steps + 1} tokens"
        raise ValueError(f"{what} (split {split}); lower --prefix or --steps")
    return found


def _documents(path: Path, content: str, tokenizer: Any) -> Iterator[tuple[str, list[int], list[int] | None]]:
    if path.suffix != ".jsonl":
        yield path.stem, tokenizer(content)["input_ids"], None
        return
    for number, line in enumerate(content.splitlines(), 1):
        try:
            document = json.loads(line)
            texts = [document["text"]] if "text" in document else [document["prompt"], document["continuation"]]
            first = tokenizer(texts[0])["input_ids"]
            rest = tokenizer(texts[1], add_special_tokens=False)["input_ids"] if len(texts) > 1 else None
            group = str(document.get("group", path.stem))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            says = 'every line needs "text", or "prompt" and "continuation", with text in it'
            raise ValueError(f"{path}, line {number}: {says} ({type(error).__name__}: {error})") from None
        yield group, first, rest


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
