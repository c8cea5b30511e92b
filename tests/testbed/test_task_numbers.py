"""The number tasks, checked by another road than the generators take."""

import re
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lynx_moe.testbed.tasks import numbers

seeds = st.integers(0, 2**32)


def given_part(prompt: str, task: str) -> str:
    head, _, body = prompt.removesuffix(" ->").partition(": ")
    assert head == task
    return body


@given(seeds)
def test_add_columns_and_total(seed: int) -> None:
    item = numbers.add(Random(seed))
    a, b = given_part(item.prompt, "add").split(" + ")
    columns, _, total = item.answer.partition("; ")
    assert int(total) == int(a) + int(b)
    carry = "0"
    for place, column in enumerate(columns.strip().split(", ")):
        terms, result = column.split("=")
        assert terms == f"{a[-1 - place]}+{b[-1 - place]}+{carry}"
        assert int(result) == eval(terms)
        carry = result[0]
    assert place == len(a) - 1


@given(seeds)
def test_sort_is_an_ordered_permutation(seed: int) -> None:
    item = numbers.sort(Random(seed))
    asked, answered = given_part(item.prompt, "sort").split(), item.answer.split()
    assert set(asked) == set(answered)
    assert len(asked) == len(answered) == len(set(asked))
    assert all(int(a) < int(b) for a, b in pairwise(answered))


@given(seeds)
def test_sequence_tells_its_step_and_goes_on_with_it(seed: int) -> None:
    item = numbers.sequence(Random(seed))
    step, rest = item.answer.split(":")
    terms = [int(t) for t in (given_part(item.prompt, "sequence") + rest).split()]
    assert len(terms) == 8
    assert {b - a for a, b in pairwise(terms)} == {int(step)}
    assert step[1] in "+-"
    assert min(terms) >= 0


@given(seeds)
def test_chain_steps_evaluate_and_connect(seed: int) -> None:
    item = numbers.chain(Random(seed))
    value, *operations = given_part(item.prompt, "chain").split()
    steps = item.answer.strip().split(", ")
    assert len(steps) == len(operations)
    for step, operation in zip(steps, operations, strict=True):
        formula, value_after = step.split("=")
        assert formula == value + operation
        assert eval(formula) == int(value_after)
        assert 0 <= int(value_after) <= 99
        value = value_after


@given(seeds)
def test_walk_moves_one_cell_at_a_time(seed: int) -> None:
    item = numbers.walk(Random(seed))
    start, *moves = given_part(item.prompt, "walk").split()
    position = complex(*map(int, start.split(".")))
    assert len(moves) == item.answer.count(",") + 1
    for move, step in zip(moves, item.answer.strip().split(", "), strict=True):
        position += {"N": 1j, "S": -1j, "E": 1, "W": -1}[move]
        assert step == f"{move} {int(position.real) % 10}.{int(position.imag) % 10}"


@given(seeds)
def test_convert_to_the_smaller_unit(seed: int) -> None:
    item = numbers.convert(Random(seed))
    whole, large, rest, small = given_part(item.prompt, "convert").split()
    factor = {"h": 60, "m": 100, "km": 1000, "kg": 1000, "EUR": 100}[large]
    *product, answer = item.answer.strip().split(", ")
    assert answer == f"{int(whole) * factor + int(rest)} {small}"
    for written in product:
        assert large == "h"
        assert re.fullmatch(rf"{whole}\*60={int(whole) * 60}", written)
