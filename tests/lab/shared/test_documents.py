"""Where documents come from, and who shares a batch."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import MODELS
from transformers import AutoTokenizer

from lynx_moe.lab.shared import texts
from lynx_moe.lab.shared.documents import Document, batches, from_file, from_testbed
from lynx_moe.testbed.tasks import TASKS
from lynx_moe.testbed.tasks.split import is_held_out, split_of


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


SIZES = [(8, 4, 10**6), (32, 224, 10**6), (32, 32, 7), (5, 300, 40)]  # prefix, steps, sequences: of several commands


def words_of(tokenizer, documents) -> set[str]:
    """The words that lie in the documents whole; they come from texts that hold no word twice."""
    texts = (tokenizer.decode([*one.prefix, *one.rest], skip_special_tokens=True) for one in documents)
    return {word for text in texts for word in text.split()[1:-1]}


@pytest.mark.parametrize("name", ["book.txt", "lines.jsonl", "pairs.jsonl", "chats.json"])
def test_splits_of_a_file_are_disjoint_whatever_sizes_are_asked_for(tokenizer, tmp_path, name):
    numbers = [" ".join(str(10**5 + 400 * i + j) for j in range(400)) for i in range(60)]
    file = tmp_path / name
    chats = [{"conversations": [{"from": "human", "value": text[:14]}, {"from": "gpt", "value": text[14:]}]}
             for text in numbers]  # fmt: skip
    made = {
        "book.txt": "\n".join(numbers),
        "lines.jsonl": "\n".join(json.dumps({"text": text}) for text in numbers),
        "pairs.jsonl": "\n".join(json.dumps({"prompt": text[:14], "continuation": text[14:]}) for text in numbers),
        "chats.json": json.dumps(chats),
    }
    file.write_text(made[name], encoding="utf-8")
    seen = {split: set() for split in ("calibrate", "tune", "test")}
    for prefix, steps, sequences in SIZES:
        for split, words in seen.items():
            found = from_file(file, tokenizer, sequences, prefix, steps, split)
            words |= words_of(tokenizer, found)
            assert len(found) <= sequences
    assert not seen["calibrate"] & seen["tune"]
    assert not seen["calibrate"] & seen["test"]
    assert not seen["tune"] & seen["test"]
    assert min(map(len, seen.values())) > 300
    assert max(seen, key=lambda split: len(seen[split])) == "test"


def test_running_text_is_whole_where_all_of_it_is_asked_for(tokenizer, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n\n".join(f"{n} " * (n % 90) for n in range(400)), encoding="utf-8")
    found = from_file(book, tokenizer, 10**6, num_prefix=3000, num_steps=1000)  # longer than any block
    ids = [token for one in found for token in (*one.prefix, *one.rest)]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert len(found) > 3
    assert " ".join(book.read_text(encoding="utf-8").split()).startswith(" ".join(text.split())[:-4])


def test_text_is_cut_into_windows_and_pairs_are_kept(tokenizer, tmp_path):
    running = tmp_path / "book.txt"
    running.write_text("the day after the night " * 60, encoding="utf-8")
    documents = from_file(running, tokenizer, 5, num_prefix=8, num_steps=6)
    assert [(len(d.prefix), len(d.rest), d.group) for d in documents] == [(8, 7, "book")] * 5
    ids = tokenizer(running.read_text())["input_ids"]
    assert [*documents[1].prefix, *documents[1].rest] == ids[15:30]

    pairs = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "sort: 3 1 ->", "continuation": " 1 3 5 7 9", "group": "s"}, {"text": "a b c d e f " * 9}]
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
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
        ("other.jsonl", '{"text": "a"}\n{"question": "b"}\n', r"line 2: every line needs .*it has 'question'"),
        ("half.jsonl", '{"prompt": "b"}\n', r"line 1: every line needs .*continuation missing"),
        ("list.jsonl", "[1]\n", r"line 1: every line needs .*\(it is a JSON list\)"),
        ("number.jsonl", '{"text": 3}\n', r'line 1: every line needs .*\("text" is no string but of type int\)'),
        ("texts.jsonl", '\n{"text": ["a"]}\n', r'line 2: every line needs .*\("text" is no string but of type list\)'),
        (
            "pair.jsonl",
            '{"prompt": "a", "continuation": null}',
            r'line 1: .*"continuation" is no string but of type None',
        ),
        ("half-a-sign.jsonl", '{"text": "\\ud83d"}', r"line 1: .*surrogates not allowed"),
        ("empty.jsonl", "\n\n", "holds no text of 8"),
        ("prompts.jsonl", '{"prompt": "", "continuation": "a b c d e f g"}\n' * 3, "all 3 documents .* empty prompt"),
        ("table.csv", "a,b\n", "is a table"),
        ("object.json", '{"text": "a"}', "ShareGPT's shape"),
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n', "ShareGPT's shape"),
        ("texts.json", '["a", "b"]', "conversation 1: .*ShareGPT's shape"),
        ("rows.json", '[{"text": "a"}]', "conversation 1: .*ShareGPT's shape"),
        ("turns.json", '[{"conversations": [{"from": "human"}]}]', 'conversation 1: .*"value" is no string'),
        ("cut.json", '[{"conversations": []}, {"conv', "is no whole JSON"),
        ("open.json", '[{"conversations": []}', "is no whole JSON"),
        ("nothing.json", "", "ShareGPT's shape"),
    ],
)
def test_bad_data_is_named(tokenizer, tmp_path, name, content, says):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        from_file(tmp_path / name, plain(tokenizer), 4, num_prefix=8, num_steps=4)


def test_files_that_are_no_text_are_named(tokenizer, tmp_path):
    for name in ("latin.txt", "latin.jsonl", "latin.json"):
        (tmp_path / name).write_bytes('[{"text": "Café"}]'.encode("latin-1"))
    (tmp_path / "folder").mkdir()
    for name in ("nothing.txt", "nothing.jsonl", "nothing.json", "folder", "latin.txt", "latin.json"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as text"):
            from_file(tmp_path / name, tokenizer, 4, num_prefix=8, num_steps=4)
    with pytest.raises(ValueError, match=r"latin.jsonl, line 1: .*can't decode byte"):
        from_file(tmp_path / "latin.jsonl", tokenizer, 4, num_prefix=8, num_steps=4)


def test_a_split_without_a_document_is_said_to_be_empty(tokenizer, tmp_path):
    file = tmp_path / "few.jsonl"
    text = next(text for n in range(99) if split_of(text := f"{n} the day after the night " * 9) == "test")
    file.write_text(json.dumps({"text": text}), encoding="utf-8")
    assert from_file(file, tokenizer, 1, 8, 4, "test") == from_file(file, tokenizer, 1, 8, 4)
    with pytest.raises(ValueError, match=r"holds nothing in split 'tune'.* its 1 documents .* into test"):
        from_file(file, tokenizer, 1, 8, 4, "tune")
    with pytest.raises(ValueError, match=r"no text of 900 \+ 5 tokens \(split test\); lower --prefix"):
        from_file(file, tokenizer, 1, 900, 4, "test")


SIGNS = "\u2028\u2029\x85"


def test_separators_of_other_kinds_do_not_end_a_line(tokenizer, tmp_path):
    lines = [{"text": f"a b {SIGNS} c d " * 5, "group": str(number)} for number in range(3)]
    whole, plainly = tmp_path / "signs.jsonl", tmp_path / "escaped.jsonl"
    whole.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    plainly.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    found = from_file(whole, tokenizer, 99, 4, 4)
    assert found == from_file(plainly, tokenizer, 99, 4, 4)
    assert {one.group for one in found} == {"0", "1", "2"}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_byte_order_marks_blank_lines_and_windows_line_ends_change_nothing(tokenizer, tmp_path, name):
    text = "the day after the night\n" * 20
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "the day"},
        {"from": "gpt", "value": text},
    ]
    made = {
        "a.txt": text,
        "a.jsonl": json.dumps({"text": text}) + "\n\n  \n" + json.dumps({"text": text}),
        "a.json": json.dumps([{"id": "x", "conversations": turns}, {"conversations": turns[:1]}], indent=1),
    }
    (tmp_path / name).write_text(made[name], encoding="utf-8", newline="\n")
    expected = from_file(tmp_path / name, tokenizer, 9, 4, 6)
    assert expected
    (tmp_path / name).write_text(made[name], encoding="utf-8-sig", newline="\r\n")
    assert from_file(tmp_path / name, tokenizer, 9, 4, 6) == expected
    if name == "a.json":
        ids = tokenizer("the day")["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [(one.prefix, one.rest) for one in expected] == [(tuple(ids[0]), tuple(ids[1][:7]))]


def test_a_large_array_is_read_element_by_element(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "CHUNK", 7)
    turn = lambda n, size: {"from": "human", "value": f"{n} " * size}  # noqa: E731
    chats = [{"conversations": [turn(n, 3), turn(n, 20)]} for n in range(5)]
    file = tmp_path / "chats.json"
    file.write_text(json.dumps(chats, indent=3) + "\n", encoding="utf-8")
    assert len(from_file(file, tokenizer, 9, 4, 6)) == 5
    file.write_text(json.dumps(chats)[:-3], encoding="utf-8")  # the end is broken, and is not reached
    assert len(from_file(file, tokenizer, 4, 4, 6)) == 4


def test_files_are_read_as_utf8_under_any_locale(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "Café 你好"}\n', encoding="utf-8")
    (tmp_path / "a.txt").write_text("Café 你好", encoding="utf-8")
    (tmp_path / "a.json").write_text('[{"conversations": [{"value": "Café"}, {"value": "你好"}]}]', encoding="utf-8")
    code = """
import sys
from pathlib import Path
from lynx_moe.lab.shared.texts import streams
for name in ("a.jsonl", "a.txt", "a.json"):
    for stream in streams(Path(sys.argv[1]) / name, lambda text: True):
        print(ascii((stream.prompt or "") + "".join(stream.pieces)))
"""
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code]
    ran = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == [r"'Caf\xe9 \u4f60\u597d'"] * 2 + [r"'Caf\xe9\u4f60\u597d'"], ran.stderr


class Counting:
    """A tokenizer that counts what it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.size, self.largest = tokenizer, 0, 0

    def __call__(self, text, **options):
        self.size, self.largest = self.size + len(text), max(self.largest, len(text))
        return self.tokenizer(text, **options)


@pytest.mark.parametrize("split", ["all", "calibrate"])
@pytest.mark.parametrize("name", ["book.txt", "one.jsonl", "many.jsonl", "pair.jsonl", "chat.json"])
def test_only_what_is_needed_is_tokenised(tokenizer, tmp_path, name, split):
    prompt = next(prompt for n in range(99) if split_of(prompt := f"{n} the day") == "calibrate")
    text = next(
        text for n in range(99) if split_of(text := f"{n} " + "the day after the night. " * 40_000) == "calibrate"
    )
    pair = json.dumps({"prompt": prompt, "continuation": text})
    chat = json.dumps([{"conversations": [{"value": prompt}, {"value": text}]}])
    many = "".join(json.dumps({"text": f"{n} " + text[:3000]}) + "\n" for n in range(300))
    made = {"book.txt": text, "one.jsonl": json.dumps({"text": text}), "many.jsonl": many, "pair.jsonl": pair,
            "chat.json": chat}  # fmt: skip
    if name == "book.txt":  # running text that repeats itself has few different blocks
        made[name] = " ".join(f"the {n} days after" for n in range(60_000))
    (tmp_path / name).write_text(made[name], encoding="utf-8")
    counting = Counting(tokenizer)
    found = from_file(tmp_path / name, counting, 3, num_prefix=20, num_steps=40, split=split)
    assert 1 <= len(found) <= 3
    assert counting.largest <= 2 * texts.BLOCK
    assert counting.size <= 4 * texts.BLOCK < (tmp_path / name).stat().st_size / 50


def plain(tokenizer):
    """The tokenizer without the token that starts a text."""
    return lambda text, **_: tokenizer(text, add_special_tokens=False)


def test_empty_prompts_are_left_out_and_said(tokenizer, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "" if n % 3 else f"{n} a", "continuation": "a b c d e f g"} for n in range(9)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = from_file(file, plain(tokenizer), 9, 4, 4)
    assert len(found) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "6 documents with an empty prompt are left out" in said[0]
    assert len(from_file(file, tokenizer, 9, 4, 4)) == 9  # this one starts every text with a token
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="empty prompt"):
        Document("a", (), (1, 2, 3))
