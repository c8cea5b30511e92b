"""The short form of the soak: one death of the computing process, and everything else."""

from pathlib import Path

from soak import soak


def test_a_server_under_everything_at_once(tmp_path: Path) -> None:
    log = tmp_path / "server.txt"
    found = soak(log, seconds=30, kills=1)
    assert (found["wrong"], found["late"], found["odd"]) == (0, 0, []), (found, log.read_text()[-3000:])
    assert found["lives"] == found["killed"] + 1 == 2
    for what in ("exact", "refused", "switched", "goals", "hung up"):
        assert found[what] > 0, found
