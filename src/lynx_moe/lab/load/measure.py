"""The record of `lynx-moe load`: a line of settings, then one per server, rate, round and policy.

Policies take turns on the same arrivals: in every round and at every rate each of them serves all requests once, on
one server, switched at run time. A record is written after every such run, so an interrupted one goes on.
"""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lynx_moe.lab.load import client, timeline
from lynx_moe.lab.load import trace as traces
from lynx_moe.lab.load.arm import Arm, arms_of
from lynx_moe.lab.load.server import Server, borrowed, started
from lynx_moe.lab.load.show import KIND
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.engine import import_vllm
from lynx_moe.lab.watch.control import KEY_VARIABLE
from lynx_moe.lab.watch.scrape import Scrape
from lynx_moe.policies import DEFAULT, make_policy

KINDS = (traces.TIMED, traces.BURST, traces.SHARE)
WARM_UP = 2  # requests at the beginning of each server's life that count for nothing
Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result.

    model     what is served: a folder, a hub name. Of a server that runs already its tokenizer is taken.
    trace     the file of arrivals; kind: how it is written.
    policies  take turns, each with the goals that it names (`arm.py`); the first is the baseline.
    max_kl    bounds of further servers. On each, exact requests (the baseline) and such that leave it to the server
              take turns, since a switch would begin the search for prices anew.
    rates     requests per second.
    rounds    each policy serves all requests once a round; warm_rounds: before them, where prices are looked for: on
              servers with a bound, and after a switch to a policy with a goal that was not there before.
    url       a server that runs already; None: one is started, with `serve` as more flags.
    """

    model: str
    trace: Path
    kind: str = traces.TIMED
    policies: tuple[str, ...] = ("vanilla", DEFAULT)
    max_kl: tuple[float, ...] = ()
    rates: tuple[float, ...] = (1.0,)
    rounds: int = 3
    warm_rounds: int = 1
    requests: int = 100
    prompt_scale: float = 1.0
    answer_scale: float = 1.0
    seed: int = 0
    url: str | None = None
    serve: str = ""

    def __post_init__(self) -> None:
        baseline = self.arms[0]
        if baseline.goals or not make_policy(baseline.spec).is_identity:
            raise ValueError(
                f"--policies begins with {self.policies[0]!r}; the first is the baseline and must be vanilla"
            )
        if self.kind not in KINDS:
            raise ValueError(f"--kind {self.kind!r} is unknown; allowed: {', '.join(KINDS)}")
        if min(self.rates, default=0) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(
                f"--rates {', '.join(f'{r:g}' for r in self.rates)}: each once, above 0 requests per second"
            )
        if self.rounds < 1 or self.warm_rounds < 0:
            raise ValueError(
                f"--rounds {self.rounds} must be 1 or more, and --warm-rounds {self.warm_rounds} 0 or more"
            )
        if self.url is not None and (self.max_kl or self.serve):
            raise ValueError("a server that runs already has its own flags: leave --max-kl and --serve out")
        self.scale  # noqa: B018  (checks it)

    @property
    def arms(self) -> list[Arm]:
        return arms_of(self.policies)

    @property
    def goals(self) -> list[str]:
        """Those that any policy names."""
        return list(dict.fromkeys(name for arm in self.arms for name in arm.goals))

    @property
    def scale(self) -> traces.Scale:
        return traces.Scale(self.prompt_scale, self.answer_scale, self.requests)

    @property
    def saved(self) -> dict[str, Any]:
        """As a record keeps it."""
        return {**asdict(self), "trace": str(self.trace)}

    def servers(self) -> list[tuple[str, float | None, tuple[str, ...]]]:
        """Name, bound and policies of each server that is needed."""
        bounded = [(f"max_kl={bound:g}", bound, (self.policies[0], DEFAULT)) for bound in self.max_kl]
        return [("", None, tuple(self.policies)), *bounded]


def measure(
    settings: Settings, path: Path, advance: Callable[[str], None] = print, seconds: Path | None = None
) -> lines.Record:
    """The record at `path`, finished: what it has already is not measured again. seconds: a second record, of what is
    seen in each second of each run (`timeline.py`); None: nobody looks.

    Raises ValueError for a trace that cannot be used, a server that does not start or refuses a policy, no vLLM (its
    client is used), and a record of other settings.
    """
    import_vllm()
    sources = Sources(settings, path.parent / "trace")
    whole = lines.begin(path, KIND, settings.saved)
    for name, bound, policies in settings.servers():
        runs = [(n, r, p) for n in range(1, settings.rounds + 1) for r in settings.rates for p in turn(policies, n)]
        done = {(line["round"], line["rate"], line["policy"]) for line in whole["results"] if line["server"] == name}
        if not (left := [run for run in runs if run not in done]):
            continue
        with _server(settings, bound, path.parent / f"server{name and '-'}{name}.log") as server:
            model, room = server.model()
            sources.check(room)
            key = os.environ.get(KEY_VARIABLE)
            target = client.Target(server.url, model, settings.model, path.parent / "client", key)
            client.send(target, sources.at(max(settings.rates), WARM_UP), settings.seed)
            for _ in range(settings.warm_rounds if bound is not None else 0):
                advance(f"{name}: looking for prices")
                client.send(target, sources.at(max(settings.rates)), settings.seed)
            arm: Arm | None = None
            for number, rate, policy in left:
                advance(f"{name or 'server'}: round {number} of {settings.rounds}, {rate:g} requests/s, {policy}")
                wish = "exact" if bound is not None and policy == settings.policies[0] else None
                last, arm = arm, Arm.of(policy)
                if bound is None:
                    server.switch(arm.switch([*settings.goals, *server.goals], last))
                for _ in range(settings.warm_rounds if arm.goals and arm.begins_anew(last) else 0):
                    client.send(target, sources.at(rate), settings.seed)
                which = {"server": name, "round": number, "rate": rate, "policy": policy}
                with timeline.kept(seconds, settings.saved, server.url, arm, which):
                    line = one(server, target, sources.at(rate), settings.seed, wish)
                line["spec"] = arm.spec
                whole["results"].append({**which, **line})
                lines.save(whole, path)
    return whole


def turn(policies: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The order of a round: every second one backwards, so that none always comes first."""
    return policies if number % 2 else policies[::-1]


class Sources:
    """The arrivals at each rate; what the client reads lies in `folder`."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.timed: list[traces.Request] | None = None
        self.path = folder / ("conversations.json" if settings.kind == traces.SHARE else "requests.jsonl")
        if settings.kind == traces.SHARE:
            self.block = 0
            self.requests = min(settings.requests, traces.write_shares(settings.trace, settings.scale, self.path))
        else:
            self.timed = traces.read(settings.trace, settings.kind, settings.scale)
            self.own_rate = traces.rate(self.timed)
            self.block = traces.write(self.timed, settings.scale, self.path)
            self.requests = len(self.timed)

    def check(self, room: int) -> None:
        """Raises ValueError if a request does not fit the model. ShareGPT's long ones are left out by the client."""
        if self.timed is not None:
            traces.longest(self.timed, room, self.settings.trace)

    def at(self, rate: float, requests: int | None = None) -> client.Arrivals:
        """All requests, or the first ones, at so many a second: a trace's own times are stretched."""
        dataset = traces.SHARE if self.timed is None else traces.TIMED
        stretch = None if self.timed is None else self.own_rate / rate
        return client.Arrivals(dataset, self.path, requests or self.requests, rate, self.block, stretch)


@contextmanager
def _server(settings: Settings, bound: float | None, log: Path) -> Iterator[Server]:
    if settings.url is not None:
        with borrowed(settings.url) as server:
            yield server
        return
    flags = shlex.split(settings.serve) + ([] if bound is None else ["--max-kl", repr(bound)])
    first = make_policy(DEFAULT).spec if bound is not None else settings.arms[0].spec
    with started(settings.model, first, flags, log) as server:
        yield server


def one(server: Server, target: client.Target, arrivals: client.Arrivals, seed: int, wish: str | None) -> Line:
    """All requests are served once, each with this wish. cold: the prefix cache was emptied before."""
    cold = server.forget()
    before = server.counted()
    found = client.figures(client.send(target, arrivals, seed, wish))
    return {"cold": cold, **found, **counted(server.counted().since(before))}


def counted(new: Scrape) -> dict[str, Any]:
    """Of a run: distinct experts by layer and step in which several rows decode, before and after, None where there was
    none; KL in nats, and the rows that it was measured on."""
    steps = sum(new.total("layer_steps_total", step=step) for step in ("decode", "mixed"))
    experts = [
        sum(new.total(f"distinct_experts_{when}_total", step=step) for step in ("decode", "mixed")) / steps
        if steps
        else None
        for when in ("before", "after")
    ]
    rows = new.total("kl_nats_count")
    kl = new.total("kl_nats_sum") / rows if rows else None
    return {"before": experts[0], "after": experts[1], "kl": kl, "kl_rows": int(rows)}
