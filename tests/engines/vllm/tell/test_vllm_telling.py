"""How long a worker tells, and what is left out: engines that follow one another, directories that vanish."""

import errno
import gc
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from told import files, make_plan, read, step, text, writer

from lynx_moe.engines.shared.families import WORKERS
from lynx_moe.engines.vllm.step.plan import Plan, activate
from lynx_moe.engines.vllm.tell import exporter


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(exporter.DIRECTORY, str(tmp_path / "metrics"))
    return tmp_path / "metrics"


class Model:
    """Lives as long as an engine's model."""


def eventually(holds) -> bool:  # type: ignore[no-untyped-def]
    for _ in range(500):
        if holds():
            return True
        time.sleep(0.01)
    return False


def series() -> list[str]:
    return [line.rpartition(" ")[0] for line in text().splitlines() if not line.startswith("#")]


def test_the_thread_tells_of_new_steps_and_ends_with_its_model(folder: Path) -> None:
    plan, model = make_plan(), Model()
    exporter.write_on(writer(plan), model)
    assert eventually(lambda: len(files(folder)) == 1)
    step(plan, [True, True], [1, 1])
    assert eventually(lambda: read().total("steps_total", kind="decode") == 2)
    activate(make_plan())  # another engine steps in this process: both are there
    time.sleep(0.1)
    assert read().total("steps_total", kind="decode") == 2
    del model
    gc.collect()
    assert eventually(lambda: not files(folder))
    assert read().samples == {WORKERS: [({}, 0.0)]}


def test_nothing_is_written_after_the_end(folder: Path) -> None:
    """The model may be collected in the midst of a write."""
    plan = make_plan()
    ending = writer(plan)
    ending.end()
    ending.run()
    assert not files(folder)


def test_of_two_engines_under_the_same_labels_the_newest_one_is_told_and_others_stand_beside_it() -> None:
    plans = [make_plan() for _ in range(4)]
    step(plans[1], [True, True], [1, 1])
    for plan, instance, stage in ((plans[0], "old", "0"), (plans[2], "old", "1"), (plans[1], "new", "0")):
        writer(plan, instance=instance, since=float(instance == "new"), stage=stage).tell()
    assert len(series()) == len(set(series()))
    assert read().total("steps_total", kind="decode") == 2
    assert read().values("steps_total", "stage") == ["0"]  # the old engine's second stage is gone too
    writer(plans[3], instance="another", since=2.0, model_name="other").tell()
    assert len(series()) == len(set(series()))
    assert [name for name, _ in read().engines()] == ["m", "other"]


def cleaned(folder: Path) -> None:
    """As a cleaner does it: what is written meanwhile is taken the next time."""
    for _ in range(100):
        try:
            return shutil.rmtree(folder)
        except OSError:
            continue
    raise AssertionError("it never went away")


def test_a_directory_that_vanishes_comes_back_with_the_numbers(folder: Path) -> None:
    """A cleaner of temporary files takes it while the engine is idle."""
    plan, model = make_plan(), Model()
    exporter.write_on(writer(plan), model)
    for _ in range(2):
        assert eventually(lambda: read().total("steps_total") == 2)
        cleaned(folder)
    assert eventually(lambda: read().total("steps_total") == 2)
    step(plan, [True, True], [1, 1])
    assert eventually(lambda: read().total("steps_total") == 3)
    assert folder.stat().st_mode & 0o077 == 0
    del model


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_is_warned_of_once_and_may_come_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    plan = make_plan()
    one = writer(plan)
    one.tell()
    assert read().total("steps_total") == 2

    def refuse(self: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as full, caplog.at_level(logging.WARNING, "vllm.lynx_moe"):
        full.setattr(Path, "write_text", refuse)
        for _ in range(3):
            step(plan, [True, True], [1, 1])
            one.tell()
    (warning,) = caplog.messages
    assert os.strerror(number) in warning
    assert str(folder) in warning
    assert read().total("steps_total") == 0  # old numbers would be taken for an engine that stands still
    one.tell()
    assert read().total("steps_total") == 5


def test_no_error_ends_the_telling(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers are read while the engine goes on."""
    plan = make_plan()
    one = writer(plan)

    def changed(plan: Plan) -> list[object]:
        raise RuntimeError("dictionary changed size during iteration")

    with monkeypatch.context() as racing, caplog.at_level(logging.WARNING, "vllm.lynx_moe"):
        racing.setattr(one, "samples", changed)
        one.tell()
        one.tell()
    assert len(caplog.messages) == 1
    one.tell()
    assert read().total("steps_total") == 2


def test_what_dead_workers_and_others_left_is_passed_over(folder: Path) -> None:
    plans = make_plan(), make_plan()
    dead, alive = writer(plans[0], model_name="dead"), writer(plans[1])
    for each in (dead, alive):
        each.tell()
    os.utime(str(dead.target), (0, 0))  # nobody has said for long that it is alive
    for name, broken in (("torn", '{"teller": {'), ("other", "[]"), ("older", '{"labels": {}}')):
        (folder / f"{name}.json").write_text(broken)
    assert list(read().engines()) == [("m", "0")]
    os.utime(str(alive.target), (0, 0))
    assert not read().engines()
    alive.tell()  # without a step in between
    assert list(read().engines()) == [("m", "0")]
