"""Exercises with exact answers. Needs neither torch nor transformers.

`TASKS` names the generators; `test_items` draws the held-out exercises, `train_item` all others.
"""

from collections.abc import Callable
from itertools import count
from random import Random

from lynx_moe.testbed.tasks import numbers, structured, text
from lynx_moe.testbed.tasks.item import Generator, Item
from lynx_moe.testbed.tasks.split import is_held_out

__all__ = ["TASKS", "Item", "is_held_out", "test_items", "train_item"]

TASKS: dict[str, Generator] = {
    "add": numbers.add,
    "brackets": text.brackets,
    "caesar": text.caesar,
    "chain": numbers.chain,
    "code": structured.code,
    "convert": numbers.convert,
    "recall": text.recall,
    "reverse": text.reverse,
    "sequence": numbers.sequence,
    "sort": numbers.sort,
    "spell": text.spell,
    "tomorrow": structured.tomorrow,
    "translate": text.translate,
    "walk": numbers.walk,
}


def train_item(task: str, rng: Random) -> Item:
    """The next exercise of `task` that is not held out."""
    while is_held_out((item := _generator(task)(rng)).prompt):
        pass
    return item


def test_items(
    task: str,
    n: int,
    seed: int = 0,  # noqa: PT028 - no test
    belongs: Callable[[str], bool] = is_held_out,  # noqa: PT028
) -> list[Item]:
    """`n` different held-out exercises of `task`; the same ones for the same `seed`, and a prefix of any longer list.

    belongs: which prompts may be drawn, some of the held-out ones.
    Raises ValueError for an unknown task, or when `task` has fewer than `n` of these exercises.
    """
    generate, rng = _generator(task), Random(f"{task}/{seed}")
    found: dict[str, Item] = {}
    for draw in count():
        if len(found) == n:
            return list(found.values())
        if draw > 200 * (n + 1):
            raise ValueError(f"task {task!r} has about {len(found)} held-out exercises, {n} were asked for")
        item = generate(rng)
        if belongs(item.prompt):
            found.setdefault(item.prompt, item)
    raise AssertionError("unreachable")


def _generator(task: str) -> Generator:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[task]
