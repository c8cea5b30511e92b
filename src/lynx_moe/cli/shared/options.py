"""Options that several commands take, and how their text is read."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from lynx_moe.lab.shared.models import named


def kept_in(folder: Path) -> Path:
    """The folder that --out names. Raises ValueError where nothing can be kept there: before a measurement, which may
    take hours, and not behind it."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--out {folder}: {there} is no folder that can be written to; name another")
    return folder


def kept_as(file: Path | None) -> Path | None:
    """The file that --out names, if it does. Raises ValueError as `kept_in`."""
    if file is not None and file.is_dir():
        raise ValueError(f"--out {file} is a folder; name a file in it")
    if file is not None:
        kept_in(file.parent)
    return file


Model = Annotated[str, typer.Argument(help="Model folder, hub name, or the name of a testbed model.")]
Out = Annotated[Path, typer.Option(help="Folder for records and pictures.", callback=kept_in)]
Policies = Annotated[str, typer.Option(help="Spec strings between spaces.")]
Baseline = Annotated[str, typer.Option(help="Spec strings between spaces; the first is the baseline.")]
BatchSizes = Annotated[str, typer.Option(help="Requests that decode together: sizes between commas.")]
Data = Annotated[
    str, typer.Option(help="testbed, or a file: .jsonl of text or of pairs, ShareGPT's .json, running text.")
]
Sequences = Annotated[int, typer.Option(help="Documents to decode.")]
Prefix = Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")]
Steps = Annotated[int, typer.Option(help="Tokens of running text that are decoded.")]
Seed = Annotated[int, typer.Option(help="Draws the exercises and who shares a batch.")]
Split = Annotated[str, typer.Option(help="Of the data: all, calibrate, tune or test, which never overlap.")]
MaxMemory = Annotated[
    float | None, typer.Option(help="GiB to use beside the model (default: four fifths of what is free).")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, ...; auto: as the weights were saved.")]
Shape = Annotated[
    str,
    typer.Option(
        help="Published layer shape to time: qwen3-30b (also -w8a8, -fp8, -int4: quantised experts), olmoe-1b-7b, "
        "deepseek-v2-lite, mixtral-8x7b, gpt-oss-20b."
    ),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")]
found = named  # what `Model` says
ExpertsResident = Annotated[
    str | None,
    typer.Option(help="Experts that stay in memory, the others on a disk: 32 a layer, 25% of them, or 4GiB."),
]
ExpertsFolder = Annotated[str | None, typer.Option(help="Where experts on a disk lie (default: the cache).")]
ExpertsResidency = Annotated[
    str | None, typer.Option(help="Whether decisions know which are in memory: blind (default) or aware.")
]
Layers = Annotated[int | None, typer.Option(min=1, help="Layers of it (default: what fits in 3 GB).")]


def sizes(text: str, option: str = "--batch-sizes") -> list[int]:
    """Whole numbers between commas. Raises ValueError for anything else."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} must be whole numbers between commas, such as 2,4,16") from None


def json_of(text: str, option: str) -> Any:
    """What the text of an option says. Raises ValueError if it is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{option} {text!r} is not JSON ({error}); write it as '{{\"name\": 1}}'") from None
