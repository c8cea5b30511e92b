"""A server that is started again whenever it ends, as an operator's supervisor does it."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import running

MOST_RESTARTS = 20
GRACE = 30  # seconds for a server to end whose engine has died: some of vLLM's wait for requests that never end


class Supervisor:
    """Keeps `lynx-moe serve ARGS` up on one port between `start` and `stop`. `rss` holds (seconds since the start of
    this life, bytes of all its processes) per life."""

    def __init__(self, log: Path, *args: str) -> None:
        self.port = running.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = ("--host", "127.0.0.1", "--port", str(self.port), "--served-model-name", "testbed")
        self.command = [sys.executable, "-m", *running.OURS, *args, *given, "--enforce-eager", "--max-model-len", "512"]
        self.log, self.lives, self.stopping = log, 0, threading.Event()
        self.process: subprocess.Popen[bytes] | None = None
        self.rss: list[list[tuple[float, int]]] = []
        self.thread = threading.Thread(target=self._keep_up, daemon=True)

    def start(self) -> None:
        self.thread.start()
        self.wait()

    def stop(self) -> None:
        self.stopping.set()
        self._end()
        self.thread.join(90)

    def wait(self, seconds: float = 600) -> None:
        """Until the server answers. Raises TimeoutError."""
        for _ in range(int(seconds)):
            if self.healthy():
                return
            time.sleep(1)
        raise TimeoutError(f"no answer within {seconds:.0f} s:\n{self.log.read_text()[-3000:]}")

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def family(self) -> list[psutil.Process]:
        """The server's process and all below it."""
        if self.process is None:
            return []
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill_worker(self) -> bool:
        """Ends the process that computes, without warning."""
        workers = [p for p in self.family()[1:] if p.is_running() and "VLLM::" in " ".join(p.cmdline() or [p.name()])]
        if workers:
            workers[-1].kill()
            late = threading.Timer(GRACE, self._put_down, [self.process])
            late.daemon = True
            late.start()
        return bool(workers)

    def _put_down(self, process: "subprocess.Popen[bytes]") -> None:
        """Ends a server that neither answers nor ends; `_keep_up` starts the next one."""
        if process is self.process and process.poll() is None and not self.healthy():
            process.kill()

    def _keep_up(self) -> None:
        while not self.stopping.is_set() and self.lives <= MOST_RESTARTS:
            with self.log.open("ab") as out:
                self.process = subprocess.Popen(
                    self.command, stdout=out, stderr=out, env=running.ENV, start_new_session=True
                )
            self.lives, began = self.lives + 1, time.monotonic()
            self.rss.append([])
            while self.process.poll() is None and not self.stopping.is_set():
                self.stopping.wait(2)
                self.rss[-1].append((time.monotonic() - began, sum(map(_rss, self.family()))))
            self._end()

    def _end(self) -> None:
        """Ends the server and whatever of its processes is left."""
        family, process = self.family(), self.process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        for one in family:
            if one.is_running() and one.pid != os.getpid():
                one.kill()


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
