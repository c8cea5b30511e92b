"""One exercise, and what draws them."""

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
