"""The tasks about letters, words, symbols, dates and code, checked by another road than the generators take."""

import ast
import re
from datetime import datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from lynx_moe.testbed.tasks import structured, text
from lynx_moe.testbed.tasks.lexicon import LEXICON

seeds = st.integers(0, 2**32)


def words(prompt: str) -> list[str]:
    return prompt.removesuffix(" ->").partition(": ")[2].split()


@given(seeds)
def test_reverse_twice_is_the_question(seed: int) -> None:
    item = text.reverse(Random(seed))
    assert item.answer.split()[::-1] == words(item.prompt)


@given(seeds)
def test_caesar_moves_every_letter_by_the_same_distance(seed: int) -> None:
    item = text.caesar(Random(seed))
    shift = int(item.prompt[len("caesar ") : item.prompt.index(":")])
    asked, answered = words(item.prompt), item.answer.split()
    assert len(asked) == len(answered)
    assert {(ord(b) - ord(a)) % 26 for a, b in zip(asked, answered, strict=True)} == {shift}


@given(seeds)
def test_spell_joined_again_is_the_words(seed: int) -> None:
    item = text.spell(Random(seed))
    assert [word.replace(" ", "").lower() for word in item.answer.split(",")] == words(item.prompt)


@given(seeds)
def test_translation_can_be_undone(seed: int) -> None:
    item = text.translate(Random(seed))
    back = {invented: english for english, invented in LEXICON.items()}
    assert [back[word] for word in item.answer.split()] == words(item.prompt)


def test_lexicon_is_one_to_one_and_fixed() -> None:
    assert len(set(LEXICON.values())) == len(LEXICON) == 165
    assert (LEXICON["apple"], LEXICON["winter"]) == ("fosa", "pusedi")


@given(seeds)
def test_recall_gives_pairs_of_the_table_in_the_order_asked_for(seed: int) -> None:
    item = text.recall(Random(seed))
    table, asked = item.prompt.removesuffix(" ->").removeprefix("recall:").split(";")
    pairs = item.answer.split(",")
    listed = table.split(",")
    assert set(pairs) <= set(listed)
    assert [pair.split()[0] for pair in pairs] == asked.split()
    assert len({pair.split()[1] for pair in pairs}) == len(pairs) == min(len(listed), 6) >= 2


@given(seeds)
def test_brackets_cancel_out(seed: int) -> None:
    item = text.brackets(Random(seed))
    whole = "".join(words(item.prompt) + item.answer.split())
    while whole != (shorter := re.sub(r"\(\)|\[\]|\{\}", "", whole)):
        whole = shorter
    assert whole == ""
    assert len(item.answer.split()) >= 3


@given(seeds)
def test_tomorrow_minus_a_day_is_the_question(seed: int) -> None:
    item = structured.tomorrow(Random(seed))
    after = datetime.strptime(item.answer.strip(), "%d %B %Y")
    assert [(after - timedelta(days=1)).date().isoformat()] == words(item.prompt)


@given(seeds)
def test_code_is_python_with_the_asked_names(seed: int) -> None:
    item = structured.code(Random(seed))
    name, *fields = words(item.prompt)
    source = item.answer.strip().replace(": def", ":\n def", 1)
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef)
    (init,) = node.body
    assert isinstance(init, ast.FunctionDef)
    assert (node.name, [a.arg for a in init.args.args]) == (name, ["self", *fields])
    assert [ast.unparse(line) for line in init.body] == [f"self.{field} = {field}" for field in fields]
