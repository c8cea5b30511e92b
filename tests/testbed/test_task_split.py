"""Held-out exercises stay out of training, and are the same ones every time."""

import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed import tasks
from lynx_moe.testbed.model.families import FAMILIES
from lynx_moe.testbed.training.data import Packer, encode_item

FAMILY = FAMILIES["qwen3-moe"]


@pytest.mark.parametrize("task", tasks.TASKS)
def test_items_are_held_out_distinct_and_repeatable(task: str) -> None:
    items = tasks.test_items(task, 60)
    assert len({item.prompt for item in items}) == 60
    assert all(tasks.is_held_out(item.prompt) for item in items)
    assert tasks.test_items(task, 17) == items[:17]
    assert tasks.test_items(task, 60, seed=1) != items


@pytest.mark.parametrize("task", tasks.TASKS)
def test_training_never_draws_a_held_out_exercise(task: str) -> None:
    rng = Random(3)
    assert not any(tasks.is_held_out(tasks.train_item(task, rng).prompt) for _ in range(300))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_about_one_exercise_in_sixteen_is_held_out(task: str) -> None:
    rng = Random(4)
    held_out = sum(tasks.is_held_out(tasks.TASKS[task](rng).prompt) for _ in range(1600))
    assert 60 <= held_out <= 150


def test_packed_rows_hold_no_held_out_prompt(tokenizer: PreTrainedTokenizerFast, texts: list[list[list[int]]]) -> None:
    packer = Packer(tokenizer, texts, replace(FAMILY, batch_rows=8, row_length=192, seed=0))
    prompts = set()
    for step in range(20):
        for row in packer.batch(step).ids_BL:
            documents = tokenizer.decode(row).split("<bos>")
            prompts |= {d.partition("->")[0] + "->" for d in documents if "->" in d}
    assert len(prompts) > 200
    assert not any(map(tasks.is_held_out, prompts))


def test_too_many_items_and_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'sorting'; the tasks are add"):
        tasks.test_items("sorting", 1)
    with pytest.raises(ValueError, match="held-out exercises, 400 were asked for"):
        tasks.test_items("sequence", 400)


def test_tasks_need_neither_torch_nor_transformers() -> None:
    program = (
        "import sys; sys.modules['lynx_moe'] = type(sys)('lynx_moe'); sys.modules['lynx_moe'].__path__ = sys.argv[1:]"
    )
    program += "; import lynx_moe.testbed.tasks; assert not {'torch', 'transformers'} & set(sys.modules)"
    package = next(iter(__import__("lynx_moe").__path__))
    subprocess.run([sys.executable, "-c", program, package], check=True)


def test_long_answers_outnumber_short_ones(tokenizer: PreTrainedTokenizerFast) -> None:
    lengths = []
    for task in tasks.TASKS:
        for item in tasks.test_items(task, 20):
            ids, given = encode_item(item, tokenizer)
            lengths.append(len(ids) - given)
    assert sorted(lengths)[len(lengths) // 2] >= 8
