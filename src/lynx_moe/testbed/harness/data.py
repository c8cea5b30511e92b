"""What the YAML files beside this one call: the documents of a task and the scoring of an answer."""

from collections.abc import Sequence
from random import Random
from typing import Any

from lynx_moe.testbed.tasks import test_items, train_item
from lynx_moe.testbed.training import corpus

ITEMS = 200
NUM_FEWSHOT_ITEMS = 16


def exercises(*, exercise: str, items_per_task: int = ITEMS, **_: Any) -> dict[str, Any]:
    """Splits `test` (the held-out `test_items`) and `fewshot` (none of them held out), columns `prompt` and `answer`.

    The harness passes all of its metadata; `--metadata '{"items_per_task": 50}'` draws fewer or more items.
    """
    from datasets import Dataset

    rng = Random(f"fewshot/{exercise}")
    splits = {
        "test": test_items(exercise, items_per_task),
        "fewshot": [train_item(exercise, rng) for _ in range(NUM_FEWSHOT_ITEMS)],
    }
    return {name: Dataset.from_list([vars(item) for item in items]) for name, items in splits.items()}


def texts(*, kind: str, items_per_task: int = ITEMS, **_: Any) -> dict[str, Any]:
    """Split `test`: the first held-out pieces of `kind` ("english" or "python"), column `text`."""
    from datasets import Dataset

    return {"test": Dataset.from_dict({"text": corpus.chunks(kind, held_out=True)[:items_per_task]})}


def exact_match(doc: dict[str, str], results: Sequence[str]) -> dict[str, float]:
    """1.0 if the one answer equals the right one, spaces at the ends aside."""
    return {"exact_match": float(results[0].strip() == doc["answer"].strip())}
