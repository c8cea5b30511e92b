"""Pieces of a cell: kept by batch, found after a kill, gone when they are in the record; and how far it is."""

from pathlib import Path

from lynx_moe.lab.shared.pieces import Pieces
from lynx_moe.lab.shared.progress import EVERY, Progress, duration

CELL, OTHER = {"batch_size": 4}, {"batch_size": 8}


def test_what_was_added_is_found_again_by_the_same_cell_alone(tmp_path: Path) -> None:
    record = tmp_path / "a.jsonl"
    pieces = Pieces(record, CELL)
    pieces.add(0, {"lynx": {"kl": [0.1, 1 / 3]}, "oea:k0=1": {"kl": [0.2]}})
    again = Pieces(record, CELL)
    assert again.find("lynx", 0) == {"kl": [0.1, 1 / 3]}
    assert again.has(["lynx", "oea:k0=1"], 0)
    assert not again.has(["lynx"], 1)
    assert not again.has(["lynx", "topk:k=1"], 0)
    assert Pieces(record, OTHER).find("lynx", 0) is None


def test_a_line_that_a_kill_has_cut_is_lost_alone(tmp_path: Path) -> None:
    record = tmp_path / "a.jsonl"
    Pieces(record, CELL).add(0, {"lynx": {"kl": [0.1]}})
    file = tmp_path / "a.pieces.jsonl"
    file.write_text(file.read_text() + '{"cell": {"batch_size": 4}, "spec": "ly')
    pieces = Pieces(record, CELL)
    pieces.add(1, {"lynx": {"kl": [0.3]}})
    assert [Pieces(record, CELL).find("lynx", place) for place in (0, 1)] == [{"kl": [0.1]}, {"kl": [0.3]}]


def test_what_is_saved_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    record = tmp_path / "a.jsonl"
    mine, other = Pieces(record, CELL), Pieces(record, OTHER)
    mine.add(0, {"lynx": {"kl": [0.1]}, "oea:k0=1": {"kl": [0.2]}})
    other.add(0, {"lynx": {"kl": [0.3]}})
    mine.forget(["lynx"])
    assert Pieces(record, CELL).find("lynx", 0) is None
    assert Pieces(record, CELL).has(["oea:k0=1"], 0)
    mine.forget(["oea:k0=1"])
    Pieces(record, OTHER).forget(["lynx"])
    assert list(tmp_path.iterdir()) == []


def test_progress_is_said_now_and_then_with_what_is_left() -> None:
    said: list[str] = []
    now = [0.0]
    progress = Progress(said.append, 100, clock=lambda: now[0])
    for _ in range(100):
        now[0] += EVERY / 4
        progress.step()
    assert len(said) == 24
    assert said[0] == "  4 of 100 steps, about 6 min left"
    assert said[-1] == "  96 of 100 steps, about 15 s left"
    assert [duration(seconds) for seconds in (40, 600, 9000)] == ["40 s", "10 min", "2.5 h"]
