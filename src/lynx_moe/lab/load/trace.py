"""Traces of requests, read, checked, scaled to a small machine, and written as vLLM's benchmark client reads them.

Three kinds: `timed_trace`, JSON lines as Mooncake and vLLM write them (timestamp in milliseconds, input_length,
output_length, hash_ids: blocks of the prompt, equal where prompts begin alike); `burstgpt`, the CSV of BurstGPT
(Timestamp in seconds, Request tokens, Response tokens), whose requests share nothing; `sharegpt`, a JSON list of
conversations, which has texts but no times.
"""

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMED, BURST, SHARE = "timed_trace", "burstgpt", "sharegpt"
MOONCAKE_BLOCK, MOONCAKE_TICK = 512, 0.001  # tokens of a hash id, seconds of a timestamp
BURST_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


@dataclass(frozen=True)
class Request:
    """seconds since the first one; tokens of prompt and answer; blocks of the prompt, by name."""

    seconds: float
    prompt: int
    answer: int
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """Lengths of prompts and answers as shares of the trace's, and how many requests from its beginning."""

    prompt: float = 1.0
    answer: float = 1.0
    requests: int = 100

    def __post_init__(self) -> None:
        if not (0 < self.prompt <= 1 and 0 < self.answer <= 1):
            raise ValueError(f"--prompt-scale {self.prompt:g} and --answer-scale {self.answer:g}: above 0, at most 1")
        if self.requests < 2:
            raise ValueError(f"--requests {self.requests} must be 2 or more")

    def lengths(self, prompt: int, answer: int) -> tuple[int, int]:
        return max(1, round(self.prompt * prompt)), max(1, round(self.answer * answer))


def read(path: Path, kind: str, scale: Scale) -> list[Request]:
    """The first requests of a trace with times, in order, scaled. Raises ValueError with the line that cannot be used:
    no JSON, a field that lacks or is no number, a time before that of the line above; and for fewer than two requests.
    """
    rows = {TIMED: _timed, BURST: _burst}[kind]
    found: list[Request] = []
    for number, row in _numbered(path, rows):
        seconds, prompt, answer, blocks = row
        if found and seconds < found[-1].seconds:
            raise ValueError(f"{path}, line {number}: its time {seconds:g} s lies before that of the request above")
        found.append(Request(seconds, *scale.lengths(prompt, answer), blocks))
        if len(found) == scale.requests:
            break
    if len(found) < 2:
        raise ValueError(f"{path} has {len(found)} requests; a load needs 2 or more")
    return [Request(one.seconds - found[0].seconds, one.prompt, one.answer, one.blocks) for one in found]


def rate(requests: list[Request]) -> float:
    """Requests per second. Raises ValueError if all come at once."""
    if not requests[-1].seconds:
        raise ValueError("all requests of the trace come at the same moment; take more of them (--requests)")
    return (len(requests) - 1) / requests[-1].seconds


def longest(requests: list[Request], room: int, path: Path) -> None:
    """Raises ValueError if a request has more tokens than `room`, which the model takes, and says which."""
    for number, one in enumerate(requests, 1):
        if one.prompt + one.answer > room:
            raise ValueError(
                f"{path}, request {number}: {one.prompt} tokens of prompt and {one.answer} of answer are more than the "
                f"{room} that the model takes; lower --prompt-scale and --answer-scale"
            )


def write(requests: list[Request], scale: Scale, path: Path) -> int:
    """A timed trace in seconds, whose blocks are scaled as its prompts are. Returns the tokens of a block."""
    block = max(1, round(scale.prompt * MOONCAKE_BLOCK))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        fresh = -1  # names of blocks that a trace does not name
        for one in requests:
            blocks = list(one.blocks)
            for _ in range(math.ceil(one.prompt / block) - len(blocks)):
                blocks.append(fresh)
                fresh -= 1
            row = {"timestamp": one.seconds, "input_length": one.prompt, "output_length": one.answer}
            file.write(json.dumps(row | {"hash_ids": blocks}) + "\n")
    return block


def write_shares(source: Path, scale: Scale, path: Path) -> int:
    """Of a ShareGPT file the conversations with two turns or more, texts cut to their share; returns how many.

    Raises ValueError if it is no such file, with the number of the conversation.
    """
    try:
        whole = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} is not readable JSON: {error}") from None
    if not isinstance(whole, list):
        raise ValueError(f"{source} must be a JSON list of conversations, as ShareGPT's file is")
    kept = []
    for number, entry in enumerate(whole, 1):
        try:
            turns = [turn["value"] for turn in entry["conversations"]]
        except (KeyError, TypeError):
            raise ValueError(
                f'{source}, conversation {number}: it must be {{"conversations": [{{"value": "..."}}, ...]}}'
            ) from None
        if len(turns) >= 2:
            cut = [_cut(turns[0], scale.prompt), _cut(turns[1], scale.answer)]
            kept.append({"conversations": [{"value": text} for text in cut]})
    if len(kept) < 2:
        raise ValueError(f"{source} has {len(kept)} conversations of two turns; a load needs 2 or more")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept), encoding="utf-8")
    return len(kept)


def _cut(text: str, share: float) -> str:
    return text[: max(1, round(share * len(text)))]


Row = tuple[float, int, int, tuple[int, ...]]


def _numbered(path: Path, rows: Callable[[Iterator[str]], Iterator[Row]]) -> Iterator[tuple[int, Row]]:
    """Rows with the numbers of their lines, from 1. What cannot be used is named by its line."""
    number = 0

    def counted(lines: Iterator[str]) -> Iterator[str]:
        nonlocal number
        for line in lines:
            number += 1
            if line.strip():
                yield line

    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for row in rows(counted(iter(file))):
                yield number, row
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}, line {number}: {_why(error)}") from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _why(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _timed(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        try:
            row: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"no JSON ({error}); each line is one request as an object") from None
        if not isinstance(row, dict):
            raise ValueError('a request is an object, such as {"timestamp": 0, "input_length": 9, "output_length": 3}')
        yield (
            MOONCAKE_TICK * _number(row, "timestamp", least=0),
            int(_number(row, "input_length", least=1)),
            int(_number(row, "output_length", least=1)),
            tuple(map(int, row.get("hash_ids", ()))),
        )


def _burst(lines: Iterator[str]) -> Iterator[Row]:
    reader = csv.DictReader(lines)
    for row in reader:
        if row.get(BURST_COLUMNS[2]) == "0":  # requests that failed
            continue
        seconds, prompt, answer = (
            _number(row, name, least) for name, least in zip(BURST_COLUMNS, (0, 1, 1), strict=True)
        )
        yield seconds, int(prompt), int(answer), ()


def _number(row: Any, name: str, least: float) -> float:
    value = row[name]
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} {value!r} is no number") from None
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{name} {value!r} must be {least:g} or more")
    return number
