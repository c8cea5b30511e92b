"""Packed training rows: exercises one after another, the rest of each row filled with text. No padding at all.

B rows of L tokens. `batch(step)` depends on the seed and the step alone, so a resumed run sees the same data.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.tasks import TASKS, Item, train_item
from lynx_moe.testbed.training import corpus

# Exercises drawn per task, relative to 1 for the rest: at first by how hard a task is to learn at all; after LATE_FROM
# of the budget fewer of what the models know by then and more of what they learn last.
SHARES = {"add": 1.2, "caesar": 1.5, "chain": 1.4, "code": 0.6, "recall": 2.5, "sequence": 1.3, "spell": 0.8}
LATE_SHARES = {
    "add": 0.7,
    "brackets": 1.5,
    "code": 0.7,
    "convert": 1.5,
    "recall": 2.0,
    "reverse": 0.8,
    "sequence": 1.8,
    "sort": 1.3,
    "spell": 1.4,
    "tomorrow": 0.5,
    "translate": 1.8,
    "walk": 0.8,
}
LATE_FROM = 0.55
TEXT_ROWS = 0.08
TEXTS = "texts.json"

Texts = list[list[list[int]]]


@dataclass(frozen=True)
class Batch:
    """ids_BL; positions_BL restart at every document, which makes transformers' mask block-diagonal;
    learn_BL: whether the token is a target (answers, their <eos>, and text; never a prompt)."""

    ids_BL: Tensor
    positions_BL: Tensor
    learn_BL: Tensor

    def rows(self, worker: int, num_workers: int) -> "Batch":
        """Every `num_workers`-th row, for one of several workers."""
        part = slice(worker, None, num_workers)
        return Batch(self.ids_BL[part], self.positions_BL[part], self.learn_BL[part])

    def parts(self, num_rows: int) -> "list[Batch]":
        """The batch cut into pieces of `num_rows` rows; 0 leaves it whole."""
        starts = range(0, len(self.ids_BL), num_rows or len(self.ids_BL))
        size = num_rows or len(self.ids_BL)
        return [Batch(*(t[i : i + size] for t in (self.ids_BL, self.positions_BL, self.learn_BL))) for i in starts]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.ids_BL.to(device), self.positions_BL.to(device), self.learn_BL.to(device))


def encode_item(item: Item, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], int]:
    """Tokens `<bos> prompt answer <eos>`, and how many of them come before the answer."""
    prompt = tokenizer(item.prompt)["input_ids"]
    answer = tokenizer(item.answer, add_special_tokens=False)["input_ids"]
    return [*prompt, *answer, tokenizer.eos_token_id], len(prompt)


def encode_texts(tokenizer: PreTrainedTokenizerFast, cache: Path) -> Texts:
    """The training text as tokens, a list per kind; kept in the file `cache`, for reading the sources takes long."""
    if not cache.is_file():
        pieces = [list(corpus.chunks(kind, held_out=False)) for kind in corpus.KINDS]
        texts = [tokenizer(kind, add_special_tokens=False)["input_ids"] for kind in pieces]
        cache.write_text(json.dumps(texts), encoding="utf-8")
    loaded: Texts = json.loads(cache.read_text(encoding="utf-8"))
    return loaded


class Packer:
    """Draws batches of exercises and text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Texts, family: Family) -> None:
        self.tokenizer, self.texts, self.family = tokenizer, texts, family

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`."""
        rng = Random(f"train/{self.family.seed}/{step}")
        table = LATE_SHARES if step >= LATE_FROM * self.family.num_steps else SHARES
        shares = [table.get(task, 1.0) for task in TASKS]
        ids, positions, learn = zip(*(self._row(rng, shares) for _ in range(self.family.batch_rows)), strict=True)
        return Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(learn))

    def _row(self, rng: Random, shares: list[float]) -> tuple[list[int], list[int], list[bool]]:
        ids: list[int] = []
        positions: list[int] = []
        learn: list[bool] = []
        while rng.random() >= TEXT_ROWS or ids:
            item = train_item(rng.choices(list(TASKS), shares)[0], rng)
            document, num_given = encode_item(item, self.tokenizer)
            if len(ids) + len(document) > self.family.row_length:
                break
            ids += document
            positions += range(len(document))
            learn += [False] * num_given + [True] * (len(document) - num_given)
        while len(ids) < self.family.row_length:
            text = rng.choice(rng.choice(self.texts))
            start = rng.randrange(max(1, len(text) - (self.family.row_length - len(ids))))
            document = [self.tokenizer.bos_token_id, *text[start : start + self.family.row_length - len(ids) - 1]]
            ids += document
            positions += range(len(document))
            learn += [False] + [True] * (len(document) - 1)
        return ids, positions, learn
