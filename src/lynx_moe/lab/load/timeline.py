"""A run second by second, as the server's /metrics tell it: who decodes, at which price, how long a token takes.

Points lie in a record of their own beside that of the runs, a line each; `draw` is a function of it.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from lynx_moe.control.sampling import bucket, in_order
from lynx_moe.lab.load.arm import Arm
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.plots import COLORS, save
from lynx_moe.lab.watch.fetch import base_of, fetch
from lynx_moe.lab.watch.scrape import Scrape, parse
from lynx_moe.policies import make_policy

KIND = "load timeline"
EVERY = 1.0  # seconds between two looks, as the server's workers write their numbers
# vLLM's own, counted by one process, so that they belong to the same steps
RUNNING, STEPS = "vllm:num_requests_running", "vllm:iteration_tokens_total_count"
TOKENS, SECONDS = (f"vllm:inter_token_latency_seconds_{part}" for part in ("count", "sum"))
Point = dict[str, Any]


@contextmanager
def kept(
    path: Path | None, settings: Mapping[str, Any], url: str, arm: Arm, which: Mapping[str, Any]
) -> Iterator[None]:
    """What is seen of a run while the block lasts goes into the record at `path`, each point with what `which` says.
    None: nobody looks. Raises ValueError for a record of other settings."""
    if path is None:
        yield
        return
    record = lines.begin(path, KIND, settings)
    with Timeline(url, arm) as seen:
        yield
    record["results"] += [{**which, **point} for point in seen.points]
    lines.save(record, path)


class Timeline:
    """While the block runs, looks at a server every second; `points` has what it saw, from the first request on."""

    def __init__(self, url: str, arm: Arm) -> None:
        self.address, self.arm = f"{base_of(url)}/metrics", arm
        self.points: list[Point] = []
        self.before: dict[str, float] | None = None
        self.start: float | None = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="lynx_moe timeline", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            try:
                self.look(fetch(self.address, timeout=5.0), time.monotonic())
            except ValueError:  # a server under load may be late; the next second is another
                continue

    def look(self, text: str, moment: float) -> None:
        """One exposition, read at a moment in seconds. Raises ValueError if it is none."""
        now, own = Scrape(parse(text), moment), _of_vllm(text)
        before, self.before = self.before, own
        running = own.get(RUNNING, 0.0)
        if before is None or (self.start is None and not running):
            return
        if self.start is None:
            self.start = moment
        steps, tokens, seconds = (own.get(name, 0.0) - before.get(name, 0.0) for name in (STEPS, TOKENS, SECONDS))
        batch = tokens / steps if steps > 0 else 0.0
        self.points.append(
            {
                "second": round(moment - self.start, 2),
                "running": int(running),
                "batch": round(batch, 2),
                "price": _price(now, self.arm, batch) if tokens > 0 else None,
                "tpot_ms": round(1e3 * seconds / tokens, 3) if tokens > 0 else None,
            }
        )


def _price(now: Scrape, arm: Arm, batch: float) -> float | None:
    """What rows of the server's policy ask in a step of so many: the whole price, or what a bound has come to; of that
    the share that an objective needs. None for a policy that knows no prices."""
    policy, size = make_policy(arm.spec), bucket(round(batch))
    if policy.is_identity:
        return 0.0
    if not policy.knows_prices:
        return None
    whole = policy.asks
    if size in now.values("max_kl_price", "batch"):
        whole = now.total("max_kl_price", batch=size)
    return float(whole * _share(now, size))


def _share(now: Scrape, size: str) -> float:
    """A size that was not met yet has that of the next smaller one, as it will begin."""
    if not now.total("slo_tpot_seconds"):
        return 1.0
    known = now.values("slo_share", "batch")
    order = in_order([*{*known, size}])
    smaller = [one for one in order[: order.index(size) + 1] if one in known]
    return now.total("slo_share", batch=smaller[-1]) if smaller else 0.0


def _of_vllm(text: str) -> dict[str, float]:
    """Sums over all engines of what is vLLM's own."""
    found = parse(text, RUNNING, STEPS, TOKENS, SECONDS)
    return {name: sum(value for _, value in samples) for name, samples in found.items()}


PANELS = (("batch", "requests that decode, per step"), ("price", "price"), ("tpot_ms", "time per output token, ms"))


def draw(record: dict[str, Any], path: Path) -> Path:
    """Batch, price and TPOT by the second; a column for each server and rate, a colour for each policy; of several
    rounds the first."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    points = [one for one in record["results"] if one["round"] == 1]
    columns = list(dict.fromkeys((one["server"], one["rate"]) for one in points))
    policies = list(dict.fromkeys(one["policy"] for one in points))
    figure, rows = plt.subplots(3, len(columns), figsize=(9 * len(columns), 7.5), sharex="col", squeeze=False)
    for column, (server, rate) in enumerate(columns):
        for (name, label), axes in zip(PANELS, rows[:, column], strict=True):
            for policy, color in zip(policies, COLORS, strict=False):
                mine = [one for one in points if (one["server"], one["rate"], one["policy"]) == (server, rate, policy)]
                values = [float("nan") if one[name] is None else one[name] for one in mine]
                axes.plot([one["second"] for one in mine], values, label=policy, color=color, linewidth=1.5)
                goal = Arm.of(policy).goals.get("slo_tpot_ms")
                if name == "tpot_ms" and goal is not None:
                    axes.axhline(goal, color=color, linestyle="--", linewidth=1)
            axes.set_ylabel(label, fontsize=9)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        rows[0, column].set_title(f"{rate:g} requests per second{server and f', {server}'}", fontsize=10)
        rows[-1, column].set_xlabel("seconds")
    rows[0, 0].legend(fontsize=8)
    settings = record["settings"]
    figure.suptitle(f"{Path(settings['model']).name} on {Path(settings['trace']).name}", fontsize=10)
    save(figure, record["environment"], path)
    plt.close(figure)
    return path
