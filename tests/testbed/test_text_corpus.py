"""*text*: sources, readers, documents and their splits, tokens; with small stand-ins for the packages."""

import gzip
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.text import documents as corpus
from lynx_moe.testbed.text import readers, tokens
from lynx_moe.testbed.text.fetch import SourceMissing, fetch
from lynx_moe.testbed.text.sources import KINDS, SOURCES, Source

PERMISSIVE = ("PSF", "BSD", "MIT", "Apache-2.0", "public domain", "BSL-1.0")
WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps for a long while under"


def prose(number: int) -> str:
    """A document of six paragraphs that no other number gives."""
    name = chr(97 + number % 26) * (number // 26 + 1)
    return "\n\n".join(f"{name} {WORDS} tree of kind {kind}" for kind in "abcdef")


def source(name: str, kind: str = "prose", **given: str) -> Source:
    facts = {"licence": "BSD", "reader": "plain", "via": "debian", "files": "**/*.txt"}
    return Source(name=name, kind=kind, **{**facts, **given})  # type: ignore[arg-type]


def test_every_source_is_permissive_and_has_a_reader() -> None:
    names = [s.name for s in SOURCES]
    assert len(set(names)) == len(names)
    assert {s.kind for s in SOURCES} == set(KINDS)
    assert all(s.reader in readers.READERS for s in SOURCES)
    assert not [s.name for s in SOURCES if not any(word in s.licence for word in (*PERMISSIVE, "MIT-like"))]


def test_split_is_a_function_of_the_document_alone() -> None:
    split = corpus.split_of
    assert [split(f"document {n}") for n in (16, 24, 52, 66)] == ["train"] * 4
    many = [split(f"document {n}") for n in range(20_000)]
    shares = {name: many.count(name) / len(many) for name in corpus.SPLITS}
    assert shares == pytest.approx({"train": 15 / 16, "calibrate": 1 / 64, "tune": 1 / 64, "test": 1 / 32}, abs=0.005)


def test_tidy_keeps_prose_and_nothing_twice() -> None:
    seen: set[bytes] = set()
    first = corpus.tidy(source("a"), f"{WORDS}\ntree.\n\n1 | 2 | 3 | == ** 44 55\n\nToo short.", seen)
    assert first == f"{WORDS} tree."
    assert corpus.tidy(source("b"), f"{WORDS} tree.\n\n{WORDS} house.", seen) == f"{WORDS} house."


def test_tidy_leaves_code_its_layout() -> None:
    code = "def f(x):\n    return x + 1\n\n\nclass A:\n    y = {}"
    assert corpus.tidy(source("a", "code"), code, set()) == code.replace("\n\n\n", "\n\n")


def test_html_reader_takes_paragraphs_once_and_no_code(tmp_path: Path) -> None:
    page = "<nav><p>Menu</p></nav><h1>Title¶</h1><p>One <b>bold</b>\nword</p><pre>code</pre><li><p>An item</p></li>"
    (tmp_path / "a.html").write_text(f"<html><body>{page}</body></html>")
    (tmp_path / "b.html").write_text("")
    assert list(readers.html(readers.find(tmp_path, "**/*.html"))) == ["Title\n\nOne bold word\n\nAn item"]


def test_sword_reader_unpacks_chapters(tmp_path: Path) -> None:
    blocks = [b"<chapter n='1'>In the <hi>beginning</hi><note>x</note></chapter><chapter n='2'>Then</chapter>", b""]
    packed = [zlib.compress(block) if block else b"" for block in blocks]
    (tmp_path / "ot.bzz").write_bytes(b"".join(packed))
    (tmp_path / "ot.bzs").write_bytes(struct.pack("<6I", 0, len(packed[0]), 0, len(packed[0]), 0, 0))
    found = [text.strip() for text in readers.sword([tmp_path / "ot.bzz"])]
    assert found == ["", "In the beginning", "Then"]


def test_novel_reader_takes_strings_by_chapter(tmp_path: Path) -> None:
    strings = [b"EMMA", b"CHAPTER I", b"She was.", b"", b"CHAPTER II", b"He too."]
    values = b"X\n" + b"".join(b"\x00\x04\x00\x09" + struct.pack(">i", len(s)) + s for s in strings)
    (tmp_path / "Rdata.rdb").write_bytes(2 * (b"\x00\x00\x00\x00" + zlib.compress(values)))
    assert list(readers.novels([tmp_path / "Rdata.rdb"])) == 2 * [
        "EMMA",
        "CHAPTER I\nShe was.\n",
        "CHAPTER II\nHe too.",
    ]


def test_dictionary_glosses_and_manual_readers(tmp_path: Path) -> None:
    (tmp_path / "d.dz").write_bytes(gzip.compress("\n\n".join(f"word {n}" for n in range(25)).encode()))
    assert [text.count("word") for text in readers.dictionary([tmp_path / "d.dz"])] == [20, 5]
    (tmp_path / "data.noun").write_text('  1 licence\n1 03 n 02 dwarf 0 wee_one 0 001 @ 4 n 0 | small; "a gnome"\n')
    assert list(readers.glosses([tmp_path / "data.noun"])) == ['dwarf, wee one: small; "a gnome"']
    page = b'.TH X 1\n.SH "NAME"\nx \\- an \\fBodd\\fR one\n.\\" comment\n.PP\nSecond part.\n'
    (tmp_path / "x.1.gz").write_bytes(gzip.compress(page))
    (tmp_path / "y.1.gz").symlink_to(tmp_path / "x.1.gz")
    (read,) = readers.manual(sorted(tmp_path.glob("*.1.gz")))
    assert read == "X 1\n\nNAME\nx - an odd one\n\n\nSecond part."


def test_python_reader_drops_headers_tests_tables_and_giants(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("import a\n")
    (tmp_path / "b.py").write_text("# Licence\nimport b\n")
    (tmp_path / "c.py").write_text(f"x = {'1' * 300}\nimport c\n")
    (tmp_path / "d.py").write_text("import d\n" * 20_000)
    assert list(readers.python(readers.find(tmp_path, "**/*.py"))) == ["import b\n"]


def test_missing_sources_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceMissing, match="no_such_package is not installed"):
        fetch(source("no_such_package", "code", via="installed"), tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceMissing, match="apt-get is not on this machine"):
        fetch(source("sqlite3-doc"), tmp_path)
    tool = tmp_path / "apt-get"
    tool.write_text(f"#!{sys.executable}\nimport sys; sys.exit('E: Unable to locate package')\n")
    tool.chmod(0o755)
    with pytest.raises(SourceMissing, match=r"sqlite3-doc could not be had from debian \(E: Unable.*apt-get update"):
        fetch(source("sqlite3-doc"), tmp_path)
    assert not (tmp_path / "sqlite3-doc").exists()


def test_fetched_packages_are_whole_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def unpack(wanted: Source, folder: Path) -> None:
        calls.append(wanted.name)
        (folder / "half.txt").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("lynx_moe.testbed.text.fetch._unpack", unpack)
    with pytest.raises(KeyboardInterrupt):
        fetch(source("a"), tmp_path)
    assert not (tmp_path / "a").exists()
    assert fetch(source("a"), tmp_path) == fetch(source("a"), tmp_path) == tmp_path / "a"
    assert calls == ["a", "a"]


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A corpus of two sources, as if their packages had been fetched."""
    for name, ext, numbers in (("books", "txt", range(90)), ("programs", "py", range(90, 180))):
        (tmp_path / "packages" / name).mkdir(parents=True)
        for n in numbers:
            text = prose(n) if ext == "txt" else f"import a\nend = '<eos>'\n{prose(n)}"
            (tmp_path / "packages" / name / f"{n}.{ext}").write_text(text)
    both = (source("books"), source("programs", "code", reader="python", files="**/*.py"))
    corpus.collect(tmp_path, both, tell=lambda line: None)
    return tmp_path


def test_a_collection_is_whole_or_absent_and_made_once(collected: Path) -> None:
    facts = json.loads((collected / "sources.json").read_text())
    assert [(f["name"], f["documents"]) for f in facts] == [("books", 90), ("programs", 90)]
    before = (collected / corpus.FILE).stat().st_mtime_ns
    assert corpus.collect(collected, ()) == facts
    assert (collected / corpus.FILE).stat().st_mtime_ns == before
    (collected / corpus.FILE).unlink()
    (collected / "packages" / "empty").mkdir()
    with pytest.raises(LookupError, match=r"empty gave no document: no file of it matches '\*\*/\*.txt'"):
        corpus.collect(collected, (source("empty"),))
    assert not (collected / corpus.FILE).exists()


def test_splits_share_no_document_and_no_paragraph(collected: Path) -> None:
    by_split: dict[str, set[str]] = {name: set() for name in corpus.SPLITS}
    for document in corpus.documents(collected):
        by_split[corpus.split_of(document["text"])] |= set(document["text"].split("\n\n"))
    assert sum(map(len, by_split.values())) == len(set().union(*by_split.values())) > 900
    assert by_split["train"]
    assert by_split["test"]


def test_tokens_are_the_documents_of_their_split(collected: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens.encode(collected, tokenizer)
    for kind in KINDS:
        flat = tokens.tokens(collected, "test", kind)
        ends = np.flatnonzero(flat == tokenizer.eos_token_id)  # a text that says "<eos>" does not end there
        told = [
            tokenizer.decode(ids[ids != tokenizer.eos_token_id]) for ids in np.split(flat.astype(np.int64), ends)[:-1]
        ]
        wanted = [d["text"] for d in corpus.documents(collected) if d["kind"] == kind]
        assert told == [text for text in wanted if corpus.split_of(text) == "test"]
    before = (collected / "tokens").stat().st_mtime_ns
    tokens.encode(collected, tokenizer)
    assert (collected / "tokens").stat().st_mtime_ns == before


def test_the_vocabulary_is_trained_on_training_documents(collected: Path) -> None:
    sampled = list(tokens._sample(collected))
    assert sampled
    assert all(corpus.split_of(text) == "train" for text in sampled)
