"""The server that `lynx-moe load` starts ends with it, whatever ends it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
import sys
from pathlib import Path
from lynx_moe.lab.load import server

sys.executable, folder = sys.argv[1], Path(sys.argv[2])  # what stands for the server
server._wait = lambda _, process, log: print(process.pid, flush=True)
with server.started("a-model", "priced", [], folder / "server.log"):
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_server_too(tmp_path: Path, number: signal.Signals) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\necho started\nexec {sys.executable} -c 'import time; time.sleep(600)'\n")
    stand_in.chmod(0o755)
    line = [sys.executable, "-c", LOAD, str(stand_in), str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as load:
        assert load.stdout is not None
        server = int(load.stdout.readline())
        load.send_signal(number)
        code = load.wait(60)
    assert code == (-number if number == signal.SIGINT else 128 + number)
    assert not Path(f"/proc/{server}").exists()
