"""A server under everything at once, for as long as is asked: `python tests/helpers/soak.py --minutes 30`.

Clients with all kinds of wishes, some of which hang up; policies, the bound on the KL and the latency
objective switched every few seconds; unknown specs, malformed bodies; the computing process killed now and
then, and the server restarted by its supervisor. What must hold: exact requests get the answers that the server gave
before any of it, everything is answered, bad requests with 400, and memory stays flat. Loopback only; every loop ends.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from supervisor import Supervisor

from lynx_moe.testbed import path, tasks

CLIENTS, ANSWER_SECONDS, SWITCH_SECONDS = 8, 180, 3
LEAK = 1.03  # more than this, from a life's second third to its last one
LIFE_SAMPLES = 60  # shorter lives, of two minutes or so, say nothing of leaks
POLICIES = ("lynx", "lynx:alpha=0.3,beta=1", "vanilla", "priced:price=0.03", "oea:k0=2", "topk:k=2", "xshare:budget=16")
WISHES = ("exact", "exact", None, "fast", "balanced", 0.03, "oea:k0=3", "lynx:alpha=3,beta=2")
BAD_WISHES = ("unknown", "oea:k0=99", "lynx:alpha=x", -3, "reap:share=0.5,data=/etc/hostname", "exact\n")
BAD_BODIES = (b"", b"{", b"[]", b'{"policy": 3}', b'{"policy": "linx"}', b'{"policy": "lynx:beta=-1"}', b"\xff" * 100)
BAD_BODIES += (b'{"slo_tpot_ms": 0}', b'{"max_kl": "low"}', b'{"slo": 5}', b'{"policy": "lynx", "max_kl": 7}')
GOALS = {"slo_tpot_ms": (None, 0.01, 5, 15, 1000), "max_kl": (None, 1e-5, 0.01, 0.3)}
DOWN = (502, 503, 500)


class Soak:
    """`count` of what happened, `wrong` exact answers, `late` requests that hung, `odd` answers that should not be."""

    def __init__(self, supervisor: Supervisor, seconds: float, kills: int, seed: int = 0) -> None:
        self.supervisor, self.seconds, self.kills, self.seed = supervisor, seconds, kills, seed
        self.items = [item for task in tasks.TASKS for item in tasks.test_items(task, 2, seed=3)][:24]
        self.count: Counter[str] = Counter()
        self.wrong: list[tuple[str, str]] = []
        self.late: list[str] = []
        self.odd: list[str] = []
        self.killing = threading.Event()

    def run(self) -> dict[str, Any]:
        self.expected = [self.ask(item.prompt, "exact")[1] for item in self.items]
        assert all(self.expected), self.odd
        self.began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS + 2) as pool:
            jobs = [pool.submit(self.client, self.seed + n) for n in range(CLIENTS)]
            jobs += [pool.submit(self.switcher), pool.submit(self.killer)]
            for job in jobs:
                job.result()
        after = [self.ask(item.prompt, "exact")[1] for item in self.items]
        self.wrong += [pair for pair in zip(self.expected, after, strict=True) if pair[0] != pair[1]]
        return self.report()

    def turns(self) -> Iterator[None]:
        while time.monotonic() - self.began < self.seconds:
            yield

    def client(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in self.turns():
            number, dice = rng.randrange(len(self.items)), rng.random()
            if dice < 0.1:
                self.refused(rng.choice(BAD_WISHES))
                continue
            wish = rng.choice(WISHES)
            status, text = self.ask(self.items[number].prompt, wish, hang_up=dice < 0.25)
            if status == 200 and wish == "exact" and dice >= 0.25:
                self.count["exact"] += 1
                if text != self.expected[number]:
                    self.wrong.append((self.expected[number], text))

    def switcher(self) -> None:
        rng = random.Random(self.seed)
        for _ in self.turns():
            status, _ = self.post("/lynx_moe/policy", {"policy": rng.choice(POLICIES)})
            self.count["switched"] += status == 200
            goals = {name: rng.choice(values) for name, values in GOALS.items()}
            status, answer = self.post("/lynx_moe/policy", goals)
            self.count["goals"] += status == 200
            moves_nothing = status == 400 and b"'vanilla' changes nothing" in answer
            self.expect(400 if moves_nothing else 200, status, f"goals {goals!r}")
            body = rng.choice(BAD_BODIES)
            self.expect(400, self.post("/lynx_moe/policy", body)[0], f"policy {body!r}")
            self.expect(400, self.post("/v1/completions", b"{" + body)[0], "malformed completion")
            time.sleep(SWITCH_SECONDS)

    def killer(self) -> None:
        for number in range(self.kills):
            due = self.began + self.seconds * (number + 1) / (self.kills + 1)
            while time.monotonic() < due:
                time.sleep(0.2)
            lives = self.supervisor.lives
            self.killing.set()
            self.count["killed"] += self.supervisor.kill_worker()
            while self.supervisor.lives == lives and time.monotonic() < due + 120:
                time.sleep(0.5)
            self.supervisor.wait()
            self.killing.clear()

    def ask(self, prompt: str, wish: Any, hang_up: bool = False) -> tuple[int, str]:
        """(status, text); hanging up ends a stream after its first part."""
        body: dict[str, Any] = {"model": "testbed", "prompt": prompt, "max_tokens": 48, "temperature": 0}
        body |= {"stream": hang_up} | ({} if wish is None else {"vllm_xargs": {"lynx_moe": wish}})
        status, answer = self.post("/v1/completions", body, first_line=hang_up)
        self.count["hung up" if hang_up else f"answer {status}"] += 1
        if status != 200:
            self.expect(200, status, f"a request that asks for {wish!r}")
            return status, ""
        return status, "" if hang_up else json.loads(answer)["choices"][0]["text"]

    def refused(self, wish: Any) -> None:
        body = {"model": "testbed", "prompt": "a", "max_tokens": 4, "vllm_xargs": {"lynx_moe": wish}}
        status, _ = self.post("/v1/completions", body)
        self.count["refused"] += status == 400
        self.expect(400, status, f"the wish {wish!r}")

    def expect(self, wanted: int, status: int, what: str) -> None:
        """Notes another status, unless the server is down because we ended it."""
        down = status in (0, *DOWN) and (self.killing.is_set() or not self.supervisor.healthy())
        if down:
            self.count["while down"] += 1
            time.sleep(1)
        elif status != wanted:
            self.odd.append(f"{what}: {status} in place of {wanted}")

    def post(self, where: str, body: Any, first_line: bool = False) -> tuple[int, bytes]:
        """(HTTP status, or 0 without an answer; what was answered)."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.supervisor.url + where, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.readline() if first_line else answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except TimeoutError:
            self.late.append(where)
        except (OSError, ValueError):
            pass
        return 0, b""

    def report(self) -> dict[str, Any]:
        lives = [[size for _, size in life] for life in self.supervisor.rss]
        thirds = [_thirds(life) for life in lives]
        leaks = [
            mib for mib, life in zip(thirds, lives, strict=True) if len(life) >= LIFE_SAMPLES and mib[1] > LEAK * mib[0]
        ]
        return {
            "seconds": round(time.monotonic() - self.began),
            **dict(sorted(self.count.items())),
            "lives": self.supervisor.lives,
            "wrong": len(self.wrong),
            "late": len(self.late),
            "odd": self.odd[:10],
            "rss_mib": thirds,
            "leaks": leaks,
        }


def _thirds(sizes: list[int]) -> list[int]:
    """Median MiB of a life's second and last third: the first one is start-up."""
    third = max(len(sizes) // 3, 1)
    parts = sizes[third : 2 * third] or sizes, sizes[-third:]
    return [round(statistics.median(part) / 2**20) for part in parts]


def soak(log: Path, seconds: float, kills: int, model: str = "qwen3-moe") -> dict[str, Any]:
    supervisor = Supervisor(log, str(path(model)), "--policy", "lynx", "--max-kl", "0.01", "--slo-tpot-ms", "15")
    try:
        supervisor.start()
        return Soak(supervisor, seconds, kills).run()
    finally:
        supervisor.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    log_file = Path(tempfile.mkdtemp()) / "server.txt"
    found = soak(log_file, 60 * given.minutes, given.kills)
    print(json.dumps(found, indent=1), f"server's log: {log_file}", sep="\n")
    sys.exit(bool(found["wrong"] or found["late"] or found["odd"] or found["leaks"]))
