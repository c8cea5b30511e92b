"""What a model is taught: where its batches come from, and what is measured while it learns."""

from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.tasks import TASKS, test_items
from lynx_moe.testbed.training.data import TEXTS, Batch, Packer, encode_texts
from lynx_moe.testbed.training.evaluate import exact_match

EVALUATE_ITEMS = 32


class Batches(Protocol):
    """The batch of each step, a function of the step."""

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`."""


class Course(Protocol):
    """Sent to every worker process, so it must survive pickling.

    log_every, evaluate_every    steps between two lines of the log, and between two that hold `measure`'s facts.
    """

    @property
    def log_every(self) -> int:
        """See above."""

    @property
    def evaluate_every(self) -> int:
        """See above."""

    def prepare(self, tokenizer: PreTrainedTokenizerFast, work: Path) -> None:
        """What one process does before the workers start."""

    def batches(self, family: Family, tokenizer: PreTrainedTokenizerFast, work: Path) -> Batches:
        """The batches of `family`'s run in `work`."""

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """What the log shall tell of the model as it stands."""


class Exercises:
    """The exercises of `tasks`, and a little text."""

    log_every, evaluate_every = 50, 500

    def prepare(self, tokenizer: PreTrainedTokenizerFast, work: Path) -> None:
        """Encode the text once."""
        encode_texts(tokenizer, work / TEXTS)

    def batches(self, family: Family, tokenizer: PreTrainedTokenizerFast, work: Path) -> Batches:
        """Packed exercises and text."""
        return Packer(tokenizer, encode_texts(tokenizer, work / TEXTS), family)

    def measure(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
        """Right answers of each task."""
        items = {task: test_items(task, EVALUATE_ITEMS, seed=1) for task in TASKS}
        return {"exact": {task: sum(exact_match(model, tokenizer, of)) for task, of in items.items()}}
