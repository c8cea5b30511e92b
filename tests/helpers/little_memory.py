"""`python little_memory.py MODEL MIB OPTIONS [LOAD_FORMAT]`: an engine that may take so many MiB of memory of its own.

Memory of its own is what the kernel could put nowhere else: private and writable (RLIMIT_DATA). Mapped files are not,
since the kernel may write their pages back at any time. Prints the tokens of two greedy requests, and how much memory
of its own the process has had beyond what importing vLLM takes, as JSON.
"""

import contextlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MIB = 2**20


def own() -> dict[str, int]:
    """MiB: what the limit counts (VmData), and how much of it lies in memory (RssAnon); memory of no file that is
    mapped to be shared, as slots are (RssShmem)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    told = dict(line.split(":", 1) for line in lines)
    return {name: int(told[name].split()[0]) // 1024 for name in ("VmData", "RssAnon", "RssShmem")}


@contextlib.contextmanager
def limited(mib: int) -> Iterator[dict[str, int]]:
    """So many MiB more than now may be taken from now on; yields the most that was, of each kind, inside the block."""
    before, most, done = own(), dict.fromkeys(own(), 0), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            now = own()
            most.update({name: max(most[name], now[name] - before[name]) for name in most})

    threading.Thread(target=watch, daemon=True).start()
    limit = (before["VmData"] + mib) * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    yield most
    done.set()


def main(model: str, mib: int, options: str, load_format: str = "auto") -> None:
    from tiny_vllm import engine, generate, prompts, tokens

    given = {"lynx_moe": {"policy": "vanilla", "shadow": 0, **json.loads(options)}}
    small = {"kv_cache_memory_bytes": 2**24, "max_num_batched_tokens": 256, "load_format": load_format}
    with limited(mib) as most:
        start = time.perf_counter()
        with engine(model, additional_config=given, **small) as llm:
            seconds = time.perf_counter() - start
            found = tokens(generate(llm, prompts(2, 0)))
    print(json.dumps({"tokens": found, "most": most, "seconds_to_start": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
