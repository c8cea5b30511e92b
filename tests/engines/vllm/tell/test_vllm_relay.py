"""Workers on other machines are told of by torch's store, which the first rank's process holds; here it is this one."""

import gc
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from told import LABELS, files, make_plan, read, step, writer

from lynx_moe.engines.vllm.tell import exporter
from lynx_moe.engines.vllm.tell.exporter import Teller, Writer
from lynx_moe.engines.vllm.tell.relay import Key, Relay, here
from lynx_moe.engines.vllm.tell.samples import samples


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(exporter.DIRECTORY, str(tmp_path / "metrics"))
    return tmp_path / "metrics"


class Model:
    """Lives as long as an engine's model."""


def far(plan: Any, store: Any, rank: int = 1) -> Writer:
    teller = Teller(labels=LABELS | {"stage": "1"}, instance="i", since=1.0, every=0.01)
    return Writer(plan, teller, samples, Key(store, rank))


def relay(store: Any, folder: Path) -> Relay:
    return Relay(store, range(1, 3), folder, "7", 0.01)


def test_a_stage_on_another_machine_stands_beside_the_first_one(folder: Path) -> None:
    store, plans = dist.HashStore(), [make_plan(), make_plan(first_layer=3)]
    writer(plans[0]).tell()
    relays, away = relay(store, folder), far(plans[1], store)
    relays.look()  # nobody has said anything
    away.tell()
    relays.look()
    assert read().values("layer_steps_total", "layers") == ["00", "01", "03", "04"]
    assert len(read().engines()) == 1
    step(plans[1], [True, True], [1, 1])
    away.tell()
    relays.look()
    assert {number for labels, number in read().samples["lynx_moe_steps_total"] if labels["kind"] == "decode"} == {1, 2}


def test_who_dies_is_left_out_and_who_idles_is_not(folder: Path) -> None:
    store, plan = dist.HashStore(), make_plan()
    relays, away = relay(store, folder), far(plan, store)
    away.tell()
    relays.look()
    (file,) = files(folder)
    for alive in (True, False):
        os.utime(file, (0, 0))
        if alive:
            away.tell()  # no step since, but it is there
        relays.look()
        assert bool(read().total("steps_total")) is alive


def test_the_thread_brings_the_numbers_and_takes_its_files_along(folder: Path) -> None:
    store, model = dist.HashStore(), Model()
    relay(store, folder).start(model)
    exporter.write_on(far(make_plan(), store), model)
    for _ in range(500):
        if files(folder):
            break
        time.sleep(0.01)
    assert read().total("steps_total") == 2
    del model
    gc.collect()
    for _ in range(500):
        if not files(folder):
            return
        time.sleep(0.01)
    raise AssertionError("a file outlived its engine")


def test_a_store_that_is_gone_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first rank's process holds it, and has ended."""
    server = dist.TCPStore("127.0.0.1", 0, 2, True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, 2, False, wait_for_workers=False)
    plan = make_plan()
    away = far(plan, client)
    away.tell()
    assert server.check([away.target.name])
    del server
    gc.collect()
    with caplog.at_level(logging.WARNING, "vllm.lynx_moe"):
        for _ in range(3):
            step(plan, [True, True], [1, 1])
            away.tell()
    (warning,) = caplog.messages
    assert "the store's key lynx_moe/told/1 cannot be written" in warning


def test_processes_that_share_a_machine_and_a_directory_are_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    place = here()
    assert place == here()
    monkeypatch.setenv(exporter.DIRECTORY, "/elsewhere")
    assert place != here()
