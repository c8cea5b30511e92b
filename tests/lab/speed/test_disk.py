"""What steps read from a disk, by the engine's count and by the kernel's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from expert_files import FROM, E, make
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.disk.reader import Reader
from lynx_moe.engines.disk.slots import Slots, Sums
from lynx_moe.lab.speed import disk

MIB = 2**20


def stats(**by_kind: tuple[int, int, int, float, int]) -> Any:
    names = ("loads", "hits", "bytes", "seconds", "rounds")
    steps = {kind: dict(zip(names, sums, strict=True)) for kind, sums in by_kind.items()}
    return SimpleNamespace(disk={"steps": steps}, layers=[0, 1], steps={"decode": 4, "single": 0, "prefill": 1})


def test_a_sample_is_of_decode_steps_and_the_kernels_share_of_all() -> None:
    given = stats(prefill=(10, 0, 60 * MIB, 9.0, 2), decode=(16, 48, 40 * MIB, 0.2, 4))
    assert disk.sample_of(given, 125 * MIB) == {
        "loads": 2,
        "found": 0.75,
        "mib": 10,
        "wait_ms": 50,
        "rounds": 0.5,
        "kernel": 1.25,
    }
    assert disk.sample_of(SimpleNamespace(disk=None), 7) == {}


def test_a_summary_takes_medians() -> None:
    samples = [
        disk.sample_of(stats(decode=(loads, 8, MIB * loads, 0.1, 0)), kernel * MIB)
        for loads, kernel in ((8, 8), (16, 16), (80, 40))
    ]
    found = disk.summarise(samples)
    assert (found["loads"], found["mib"], found["kernel"]) == (2, 4, 1)
    assert disk.cells(found) == ("2.0", "33", "4", "25.0", "1.000")
    assert disk.summarise([{"tpot_ms": 1}]) == {}


def test_the_kernel_counts_what_is_read_past_its_cache(tmp_path: Path) -> None:
    make(tmp_path, tmp_path / "f")
    reader, sums = Reader(tmp_path / "f", FROM), Sums()
    before = disk.bytes_read()
    Slots(reader, 0, E).hold(np.arange(E), sums)
    kernel = disk.bytes_read() - before
    if not kernel:
        pytest.skip("the temporary folder is on no disk, or the kernel does not tell")
    assert kernel >= sums.bytes == E * reader.layers[0].expert_bytes


def test_drafts_are_measured_apart() -> None:
    done = CliRunner().invoke(app, ["bench", "--drafts", "0.5", "--experts-resident", "8"])
    assert done.exit_code
    assert "--drafts and --experts-resident are measured apart" in str(done.exception)
