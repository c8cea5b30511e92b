"""Where documents come from, and who shares a batch."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import MODELS
from transformers import AutoTokenizer

from lynx_moe.lab.shared.documents import Document, batches, from_file, from_testbed
from lynx_moe.testbed.tasks import TASKS, is_held_out


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "tokenizer")


lengths = st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 30)), min_size=1, max_size=60)


@given(lengths, st.integers(2, 9), st.sampled_from(["one", "mixed"]), st.integers(0, 3))
def test_batches_are_full_end_with_their_shortest_and_keep_to_their_groups(drawn, size, mix, seed):
    documents = [Document(group, (number,), tuple(range(length))) for number, (group, length) in enumerate(drawn)]
    cut = batches(documents, size, mix, seed)
    assert cut == batches(documents, size, mix, seed)
    members = [member for batch in cut for member in batch.members]
    assert len(set(members)) == len(members)
    counts = Counter(document.group for document in documents)
    full = sum(count // size for count in counts.values()) if mix == "one" else len(documents) // size
    assert len(cut) == full
    for batch in cut:
        assert len(batch.members) == size
        assert batch.num_steps == min(len(member.rest) for member in batch.members) - 1 >= 1
        assert mix == "mixed" or len({member.group for member in batch.members}) == 1


def test_exercises_are_the_held_out_ones_with_their_ends(tokenizer):
    documents = from_testbed(tokenizer, 28, seed=0)
    assert Counter(document.group for document in documents) == dict.fromkeys(TASKS, 2)
    for document in documents:
        assert document.rest[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(document.prefix).endswith("->")
    assert from_testbed(tokenizer, 28, seed=1) != documents


def test_splits_share_no_document_and_calibration_none_that_is_held_out(tokenizer, tmp_path):
    splits = {split: from_testbed(tokenizer, 140, seed=0, split=split) for split in ("calibrate", "tune", "test")}
    prompts = {
        split: {tokenizer.decode(document.prefix, skip_special_tokens=True) for document in documents}
        for split, documents in splits.items()
    }
    assert all(Counter(document.group for document in documents) == dict.fromkeys(TASKS, 10)
               for documents in splits.values())  # fmt: skip
    assert not any(map(is_held_out, prompts["calibrate"]))
    assert all(map(is_held_out, prompts["tune"] | prompts["test"]))
    assert not prompts["tune"] & prompts["test"]

    book = tmp_path / "book.txt"
    book.write_text(" ".join(map(str, range(3000))))
    whole = from_file(book, tokenizer, 10**6, num_prefix=8, num_steps=4)
    parts = [from_file(book, tokenizer, 10**6, 8, 4, split) for split in ("calibrate", "tune", "test")]
    assert sorted(one.prefix for part in parts for one in part) == sorted(one.prefix for one in whole)
    assert min(map(len, parts)) > len(whole) / 6
    assert max(parts, key=len) == parts[2]


def test_text_is_cut_into_windows_and_pairs_are_kept(tokenizer, tmp_path):
    running = tmp_path / "book.txt"
    running.write_text("the day after the night " * 60)
    documents = from_file(running, tokenizer, 5, num_prefix=8, num_steps=6)
    assert [(len(d.prefix), len(d.rest), d.group) for d in documents] == [(8, 7, "book")] * 5
    ids = tokenizer(running.read_text())["input_ids"]
    assert [*documents[1].prefix, *documents[1].rest] == ids[15:30]

    pairs = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "sort: 3 1 ->", "continuation": " 1 3 5 7 9", "group": "s"}, {"text": "a b c d e f " * 9}]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second, *_ = from_file(pairs, tokenizer, 9, num_prefix=5, num_steps=4)
    assert (first.group, second.group) == ("s", "pairs")
    assert tokenizer.decode(first.rest) == " 1 3 5 7 9"[: len(tokenizer.decode(first.rest))]
    assert (len(second.prefix), len(second.rest)) == (5, 5)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", "", "holds no text of 8"),
        ("short.jsonl", '{"text": "a b"}\n', "holds no text of 8"),
        ("bad.jsonl", "{\n", "line 1: every line needs"),
        ("other.jsonl", '{"text": "a"}\n{"question": "b"}\n', "line 2: every line needs"),
        ("list.jsonl", "[1]\n", "line 1: every line needs"),
        ("number.jsonl", '{"text": 3}\n', "line 1: every line needs"),
    ],
)
def test_bad_data_is_named(tokenizer, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=says):
        from_file(tmp_path / name, tokenizer, 4, num_prefix=8, num_steps=4)


def test_a_missing_file_is_named(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"nothing.txt cannot be read"):
        from_file(tmp_path / "nothing.txt", tokenizer, 4, num_prefix=8, num_steps=4)
