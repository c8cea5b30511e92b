"""Real servers, started as an operator would."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

START_SECONDS = float(os.environ.get("LYNX_TEST_START_SECONDS", 240))  # a machine that is shared may need more
BIND = "VLLM_CPU_OMP_THREADS_BIND"  # set where several test processes share the cores
CLEAN = {name: value for name, value in os.environ.items() if name == BIND or not name.startswith("VLLM_")}
# As an operator's shell has it.
ENV = {**CLEAN, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
OURS = ("lynx_moe.cli", "serve")
VLLMS = ("lynx_moe.engines.vllm.launch.command", "serve")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def eventually(read: Callable[[], float], tries: int = 50) -> float:
    """What `read` gives as soon as it is not 0: numbers of the workers are a moment late."""
    for _ in range(tries):
        if found := read():
            return found
        time.sleep(0.2)
    return read()


@contextmanager
def server(
    log: Path, command: tuple[str, str], model: str, *args: str, env: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """The base URL of `lynx-moe serve` (OURS) or `vllm serve` (VLLMS) on a model, whose name is `testbed`; eager, 512
    tokens at most. `env` is added to the environment."""
    more = ("--served-model-name", "testbed", "--enforce-eager", "--max-model-len", "512")
    with serving(log, command, model, *args, *more, env={**ENV, **env}) as url:
        yield url


@contextmanager
def serving(
    log: Path,
    command: tuple[str, str],
    model: str,
    *args: str,
    env: Mapping[str, str],
    end: signal.Signals = signal.SIGINT,
) -> Iterator[str]:
    """The base URL of a server that is started by this command with these arguments, in this environment, and ends by
    this signal."""
    port = free_port()
    line = [sys.executable, "-m", *command, model, *args, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out, subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=env) as process:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=2)
                    break
                except OSError:
                    assert process.poll() is None, f"the server ended:\n{log.read_text()[-3000:]}"
                    assert time.monotonic() < deadline, f"the server did not start:\n{log.read_text()[-3000:]}"
                    time.sleep(1)
            yield url
        finally:
            process.send_signal(end)
            process.wait(60)
