"""Expert files: whole or not there, and what is read is what was written."""

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from expert_files import FROM, LAYERS, SHAPES, E, make, packed, there, weights

from lynx_moe.engines.disk import origin
from lynx_moe.engines.disk.layout import BadFile
from lynx_moe.engines.disk.making import Making, NoRoom
from lynx_moe.engines.disk.reader import Reader
from lynx_moe.engines.disk.slots import Slots, Sums
from lynx_moe.engines.disk.source import Job, ReadError

ALL = np.arange(E)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    target = tmp_path / "m.experts"
    make(tmp_path, target)
    return target


def held(reader: Reader, layer: int) -> list[torch.Tensor]:
    """Everything that a layer's file has, through slots in another order than its experts'."""
    slots = Slots(reader, layer, E)
    slots.hold(ALL[E // 2 :], Sums())
    places = torch.from_numpy(slots.hold(ALL, Sums()))
    return [table[places] for table in slots.tables]


def test_what_is_read_is_what_was_packed(file: Path) -> None:
    reader = Reader(file, FROM)
    for number, layer in enumerate(weights()):
        assert all(map(torch.equal, held(reader, number), packed(layer)))
    reader.close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_packed_experts_may_be_larger_than_loaded_ones(tmp_path: Path) -> None:
    """Packing happens in place: no expert is overwritten before its turn."""
    making, (layer, _) = Making(tmp_path), weights()
    larger = {name: (shape[0] + 32, shape[1]) for name, shape in SHAPES.items()}
    region = making.add("layers.0", layer, larger)
    for name, tensor in layer.items():
        region.tensors[name].copy_(tensor)
    pad = torch.nn.functional.pad
    region.pack(lambda parts: [pad(part, (0, 0, 0, 32)) for part in parts.values()])
    making.finish(tmp_path / "f", FROM)
    expected = [pad(tensor, (0, 0, 0, 32)) for tensor in layer.values()]
    assert all(map(torch.equal, held(Reader(tmp_path / "f", FROM), 0), expected))


def test_a_file_in_the_making_has_no_name_and_one_that_is_not_wanted_is_gone(tmp_path: Path) -> None:
    making = Making(tmp_path)
    making.add("layers.0", weights()[0], SHAPES)
    assert list(tmp_path.iterdir()) == []
    del making
    nameless = make(tmp_path, None)
    reader = Reader(nameless.path, FROM)
    nameless.discard()
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(held(reader, 0)[0], packed(weights()[0])[0])


def test_without_nameless_files_the_part_is_renamed_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *rest: object) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return opened(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    make(tmp_path, tmp_path / "m.experts")
    making = Making(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    making.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["m.experts"]
    assert torch.equal(held(Reader(tmp_path / "m.experts", FROM), 1)[0], packed(weights()[1])[0])


def test_a_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from expert_files import *;"
        "making = Making(Path(sys.argv[1]));"
        "making.add('a', weights()[0], SHAPES); os.kill(os.getpid(), signal.SIGKILL)"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2] / "helpers"), *sys.path])
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert done.returncode == -9
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_file_one_stays_and_both_read(file: Path) -> None:
    before = file.stat().st_ino
    second = make(file.parent, file)
    assert file.stat().st_ino == before
    assert torch.equal(held(Reader(second.path, FROM), 0)[0], held(Reader(file, FROM), 0)[0])


def test_a_full_disk_is_told_before_a_weight_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    making = Making(tmp_path)
    making.add("layers.0", weights()[0], SHAPES)
    with pytest.raises(
        NoRoom, match=r"GiB, and 0.00 more find no room .*No space left on device; make room, or choose"
    ):
        making.add("layers.1", weights()[1], SHAPES)
    making.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [1, 100, 5000, 10**6])
def test_a_truncated_file_is_refused(file: Path, cut: int) -> None:
    os.truncate(file, max(file.stat().st_size - cut, 0))
    with pytest.raises(BadFile, match=r"no expert file, or not whole .*; delete it"):
        Reader(file, FROM)


@pytest.mark.parametrize("content", [b"", b"x", b"lynx-moe experts 1\n" + b"\0" * 8192])
def test_a_foreign_file_is_refused_and_stays(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadFile, match="no expert file"):
        Reader(file, FROM)
    assert file.read_bytes() == content


def test_a_file_of_other_weights_is_refused(file: Path) -> None:
    with pytest.raises(BadFile, match=r"holds the experts of \{'weights': 'abc'\}, not of \{'weights': 'abd'\}"):
        Reader(file, {"weights": "abd"})
    with pytest.raises(FileNotFoundError):
        Reader(file.parent / "none", FROM)


def test_what_is_read_once_is_checked(file: Path) -> None:
    reader = Reader(file, FROM)
    (offset, _), _ = reader.layers[1].spans(3)
    with file.open("r+b") as raw:
        raw.seek(offset + 100)
        raw.write(b"?")
        os.fsync(raw.fileno())
    slots, sums = Slots(reader, 1, E), Sums()
    with pytest.raises(ReadError, match=r"expert 3 of layers.1 in .* is damaged; delete the file"):
        slots.hold(ALL, sums)
    assert not there(slots).any()
    assert sums.loads == 0
    slots.hold(ALL[ALL != 3], sums)  # the others are as they were
    assert torch.equal(slots.tables[0][slots.slot_E[4]], packed(weights()[1])[0][4])


def test_a_file_that_vanishes_is_read_on_and_one_that_is_cut_is_not(file: Path) -> None:
    reader = Reader(file, FROM)
    file.unlink()
    assert torch.equal(held(reader, 0)[1], packed(weights()[0])[1])
    os.truncate(f"/proc/self/fd/{reader.fd}", reader.layers[1].spans(5)[1][0])
    slots = Slots(reader, 1, 4)
    slots.hold(ALL[:4], Sums())
    with pytest.raises(ReadError, match=r"expert 5 of layers.1 in .* is gone: the file ends early"):
        slots.hold(ALL[3:6], Sums())
    assert there(slots)[3]
    assert not there(slots)[4:6].any()


def test_an_error_in_the_middle_leaves_no_half_read_expert(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, real = Reader(file, FROM), os.preadv
    slots = Slots(reader, 0, 6)
    slots.hold(ALL[:6], Sums())
    bad = reader.layers[0].spans(8)[1][0]

    def fail(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ReadError, match=r"expert 8 of layers.0 in .* cannot be read: Input/output error"):
        slots.hold(ALL[4:10], Sums())
    assert there(slots).tolist() == [e in (4, 5) for e in ALL]
    monkeypatch.undo()
    places = torch.from_numpy(slots.hold(ALL[4:10], Sums()))
    assert torch.equal(slots.tables[1][places[4:10]], packed(weights()[0])[1][4:10])


def test_short_reads_go_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:4096]], offset))
    assert torch.equal(held(Reader(file, FROM), 0)[0], packed(weights()[0])[0])


def test_without_o_direct_the_page_cache_is_taken_and_it_is_said(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: object, flags: int, *rest: object) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opened(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    reader = Reader(file, FROM)
    assert not reader.direct
    assert reader.indirect == "its file system knows no O_DIRECT"
    for number in range(LAYERS):
        assert torch.equal(held(reader, number)[0], packed(weights()[number])[0])


def test_odd_sizes_take_the_page_cache(tmp_path: Path) -> None:
    making, layer = Making(tmp_path), {"up": torch.randn(3, 7, 5)}
    region = making.add("a", layer, {"up": (7, 5)})
    region.tensors["up"].copy_(layer["up"])
    region.pack(lambda parts: [parts["up"].clone()])
    making.finish(tmp_path / "f", FROM)
    reader = Reader(tmp_path / "f", FROM)
    assert reader.indirect == "parts of 140 bytes are no multiple of 4096"
    slots = Slots(reader, 0, 3)
    slots.hold(np.arange(3), Sums())
    assert torch.equal(slots.tables[0], layer["up"])


def test_a_checkpoint_is_known_by_what_it_holds(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    assert origin.digest(first) is None
    (first / "model.safetensors").write_bytes(bytes(200_000))
    (first / "config.json").write_text("{}")
    shutil.copytree(first, second)
    os.utime(second / "model.safetensors", (1, 1))
    assert origin.digest(first) == origin.digest(second)
    with (second / "model.safetensors").open("r+b") as raw:
        raw.seek(100_000)
        raw.write(b"!")
    assert origin.digest(first) != origin.digest(second)


def test_of_a_large_checkpoint_a_sample_counts_and_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "WHOLE", 1000)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(200_000))
    before = origin.digest(tmp_path)
    os.utime(file, (1, 1))
    assert origin.digest(tmp_path) != before


def test_a_disk_that_is_full_at_the_end_leaves_no_file(tmp_path: Path) -> None:
    """The end is short, and a disk with room for a part of it takes that part without an error."""
    making, target = Making(tmp_path), tmp_path / "f"
    for number, layer in enumerate(weights()):
        making.add(f"layers.{number}", layer, SHAPES).pack(packed)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (making.end + 10, before[1]))
    try:
        with pytest.raises(NoRoom, match="make room, or choose another folder"):
            making.finish(target, FROM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not target.exists()


def test_files_and_threads_are_given_back_also_by_who_does_not_close(file: Path) -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = count()
    for _ in range(3):
        held(Reader(file, FROM), 0)
    for _ in range(100):  # threads end a moment later
        if count() == before:
            break
        time.sleep(0.02)
    assert count() == before
    reader = Reader(file, FROM)
    reader.close()
    with file.open("rb") as other:  # of the same number, perhaps
        reader.close()
        assert other.read(1)


def test_no_read_goes_on_behind_an_interrupt(file: Path) -> None:
    """Its buffer is an empty slot then, which another expert may get."""
    ended = []

    class Slow(Reader):
        def _read(self, job: Job) -> int:
            time.sleep(0.3)
            ended.append(job.expert)
            return super()._read(job)

    reader = Slow(file, FROM)
    jobs = [Job(0, expert, [memoryview(bytearray(part.bytes)) for part in reader.layers[0].parts]) for expert in (0, 1)]
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        reader.read(jobs)
    assert sorted(ended) == [0, 1]
    reader.close()
