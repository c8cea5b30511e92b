"""One exercise, and the rule that keeps the held-out ones out of training."""

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Protocol


@dataclass(frozen=True)
class Item:
    """A prompt that ends in `->` and its only right answer, which starts with a space (one tokenizer boundary)."""

    prompt: str
    answer: str


class Generator(Protocol):
    """A task: draws one exercise from `rng` and from nothing else."""

    def __call__(self, rng: Random) -> Item: ...


def is_held_out(prompt: str) -> bool:
    """Whether `prompt` is for testing only: one in sixteen, by SHA-256, so every machine splits alike."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 16 == 0
