"""The server under load: `lynx-moe serve`, started here or running already, its policy switched between runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared.switching import Switch
from lynx_moe.lab.watch import control
from lynx_moe.lab.watch.fetch import base_of
from lynx_moe.lab.watch.scrape import Scrape, scrape

START_SECONDS, END_SECONDS = 600.0, 60.0
METRICS_EVERY = 1.0


@dataclass(frozen=True)
class Server:
    """url: its base. settle: seconds until what a step did can be read from /metrics."""

    url: str
    settle: float

    def switch(self, asked: Switch) -> None:
        """Puts a policy and its goals on. Raises ValueError with the server's reason."""
        control.switch(self.url, asked)

    def forget(self) -> bool:
        """Empties the prefix cache; False where the server does not offer that (VLLM_SERVER_DEV_MODE)."""
        try:
            self.post("/reset_prefix_cache")
        except ValueError:
            return False
        return True

    def counted(self) -> Scrape:
        """What it has counted so far."""
        time.sleep(self.settle)
        return scrape(self.url)

    def model(self) -> tuple[str, int]:
        """The name that requests give, and the most tokens of a request."""
        (first, *_) = json.loads(self.ask("/v1/models"))["data"]
        return first["id"], int(first["max_model_len"])

    def post(self, path: str, body: Any = None) -> str:
        return self.ask(path, json.dumps(body or {}).encode())

    def ask(self, path: str, body: bytes | None = None) -> str:
        """The answer's text. Raises ValueError where there is none, or it is an error, in one line."""
        return control.ask(self.url, path, body)

    def opened(self, path: str, body: bytes | None = None) -> AbstractContextManager[Any]:
        """The answer while it comes. Raises ValueError as `ask` does."""
        return control.opened(self.url, path, body)


def running(url: str) -> Server:
    """A server that runs already. Raises ValueError if it has no metrics of ours, or no path that switches policies."""
    base = base_of(url)
    scrape(base)
    server = Server(base, settle=6.0)
    try:
        control.told(base)
    except ValueError as error:
        raise ValueError(f"{error}; only a server that `lynx-moe serve` started can be switched") from None
    return server


@contextmanager
def started(model: str, policy: str, args: Sequence[str], log: Path) -> Iterator[Server]:
    """`lynx-moe serve MODEL` on a free port until the block is left. `args` are more of its flags.

    Raises ValueError with the last lines of its log if it does not start.
    """
    port = _free_port()
    line = [sys.executable, "-m", "lynx_moe.cli", "serve", model, "--policy", policy, *args]
    line += ["--host", "127.0.0.1", "--port", str(port)]
    line += ["--additional-config.lynx_moe.metrics_every", str(METRICS_EVERY)]
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}  # opens /reset_prefix_cache
    env.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _left_in_order(), log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            server = Server(f"http://127.0.0.1:{port}", settle=2.5 * METRICS_EVERY)
            _wait(server, process, log)
            yield server
        finally:
            _end(process)


@contextmanager
def _left_in_order() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, leave the block as Ctrl-C does: else what it started stays."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _wait(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > until:
            text = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(f"the server did not start; {log} ends: {text[-1] if text else 'it is empty'}")
        try:
            server.ask("/health")
            return
        except ValueError:
            time.sleep(0.5)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Its whole group: a server that is interrupted leaves its engine behind now and then."""
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
