"""The one reader of text that users bring: a stream, always UTF-8; what is wrong with a file is said with its line.

- `.jsonl`: a line each, {"text"}, {"prompt", "continuation"} or {"conversations"}, all with an optional "group";
- `.json`: ShareGPT's shape alone, [{"conversations": [{"from", "value"}, ...]}, ...]: its first two turns, as text;
- any other file: running text, cut into blocks that depend on the text alone.
"""

import io
import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TextIO

LINES, TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv", ".parquet", ".arrow")
BLOCK = 2048  # characters, up to twice as many: some windows fit in, and a small file has blocks for every split
ENDS = (("\n\n", 2), ("\n", 1), (" ", 0))  # where a block may end, the best place first, and what it keeps of it
CHUNK = 2**20
BOM = b"\xef\xbb\xbf"
NEEDED = 'every line needs "text", or "prompt" and "continuation", with text in it'
SHAREGPT = (
    'a .json file must have ShareGPT\'s shape, [{"conversations": [{"from": "human", "value": "..."}, ...]}, ...]; '
    "give other data as .jsonl, and running text under another name"
)


class Stream(NamedTuple):
    """A document's text in pieces of at most two blocks; where it has a prompt of its own, what follows that."""

    group: str
    prompt: str | None
    pieces: Iterator[str]


class Row(NamedTuple):
    group: str
    prompt: str | None
    text: str


def streams(path: Path, belongs: Callable[[str], bool]) -> Iterator[Stream]:
    """The documents of `path` whose prompt, or else text, `belongs`. Of running text that is asked for every block, and
    neighbours that belong are one stream.

    Raises ValueError for a file that cannot be read, and for what is malformed as far as it is read.
    """
    try:
        kind = path.suffix.lower()
        if kind in TABLES:
            raise ValueError(f"{path} is a table, no text; give .jsonl, or running text under another name")
        if kind in LINES or kind == ".json":
            for row in (_lines if kind in LINES else _conversations)(path):
                if belongs(row.text if row.prompt is None else row.prompt):
                    yield Stream(row.group, row.prompt, blocks(io.StringIO(row.text)))
            return
        with path.open(encoding="utf-8-sig") as file:
            for mine, run in groupby(blocks(file), belongs):
                if mine:
                    yield Stream(path.stem, None, run)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None


def blocks(file: TextIO) -> Iterator[str]:
    """The file's text in pieces of `BLOCK` to 2 `BLOCK` characters, the last one of any length; nothing is left out."""
    rest = ""
    for chunk in iter(lambda: file.read(CHUNK), ""):
        rest, start = rest + chunk, 0
        while len(rest) - start >= 2 * BLOCK:
            end = _end(rest, start)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def _end(text: str, start: int) -> int:
    for mark, kept in ENDS:
        if (place := text.find(mark, start + BLOCK, start + 2 * BLOCK)) >= 0:
            return place + kept
    return start + 2 * BLOCK


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:  # bytes, since a line ends at \n alone: text ends one at U+2028 and others too
        for number, line in enumerate(file, 1):
            if content := line.removeprefix(BOM).strip():
                try:
                    yield _row(json.loads(content.decode()), path.stem)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {NEEDED} ({error})") from None


def _conversations(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, element in enumerate(_elements(path, file), 1):
            try:
                if "conversations" not in element:
                    raise ValueError(f"{type(element).__name__} without conversations")
                yield _row(element, path.stem)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, conversation {number}: {SHAREGPT} ({error})") from None


def _row(document: Any, stem: str) -> Row:
    """One document of a file. Raises ValueError with the reason why it is none."""
    if not isinstance(document, dict):
        raise ValueError(f"it is a JSON {type(document).__name__}")
    group = str(document.get("group", stem))
    if "text" in document:
        return Row(group, None, _text(document, "text"))
    if "conversations" in document:
        return _first_turns(document["conversations"], group)
    if missing := [name for name in ("prompt", "continuation") if name not in document]:
        raise ValueError(f"{' and '.join(missing)} missing; it has {', '.join(map(repr, document)) or 'nothing'}")
    return Row(group, _text(document, "prompt"), _text(document, "continuation"))


def _first_turns(turns: Any, group: str) -> Row:
    """What is said first and what is answered, as vLLM's own benchmark takes it; empty where nobody answers."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError('"conversations" is no list of {"from", "value"}')
    said = [_text(turn, "value") for turn in turns if turn.get("from") != "system"]
    return Row(group, *said[:2]) if len(said) > 1 else Row(group, None, "")


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str):
        raise ValueError(f'"{name}" is no string but of type {type(value).__name__}')
    value.encode()  # JSON may hold half a surrogate pair, which is no text: raises ValueError
    return value


def _elements(path: Path, file: TextIO) -> Iterator[Any]:
    """The elements of a JSON array one by one, so that a large file is never held whole. Raises ValueError."""
    decoder, rest, place = json.JSONDecoder(), file.read(CHUNK), 0
    ended = not rest

    def skip(signs: str) -> str:
        """The next sign after blanks and `signs`; "" at the end."""
        nonlocal rest, place
        while True:
            while place < len(rest) and rest[place] in " \t\r\n" + signs:
                place += 1
            if place < len(rest) or not more(1):
                return rest[place : place + 1]

    def more(factor: int) -> bool:
        nonlocal rest, place, ended
        chunk = "" if ended else file.read(CHUNK * factor)
        rest, place, ended = rest[place:] + chunk, 0, not chunk
        return not ended

    if skip("") != "[":
        raise ValueError(f"{path}: {SHAREGPT}")
    place, factor = place + 1, 1
    while (sign := skip(",")) != "]":
        try:
            element, place = decoder.raw_decode(rest, place)
        except json.JSONDecodeError as error:
            if not sign or not more(factor):
                raise ValueError(f"{path} is no whole JSON: {error.msg}; {SHAREGPT}") from None
            factor *= 2
            continue
        yield element
        factor = 1
