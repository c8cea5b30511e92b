"""What a record of `lynx-moe load` says: medians over rounds, and what is served within an objective."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHARE = 0.9  # of requests that must meet an objective before a rate counts as served
Line = dict[str, Any]


@dataclass(frozen=True)
class Objective:
    """An SLO: a request meets it if neither its TTFT nor its TPOT, in ms, is longer."""

    ttft: float
    tpot: float

    def met(self, line: Line) -> float:
        """The share of a run's requests that meet it. An answer of one token has no TPOT to be late with."""
        requests = line["requests"]
        met = sum(ttft <= self.ttft and (tpot or 0.0) <= self.tpot for ttft, tpot in requests)
        return float(met / len(requests))

    def __str__(self) -> str:
        return f"TTFT {self.ttft:g} ms, TPOT {self.tpot:g} ms"


def groups(results: Sequence[Line]) -> dict[tuple[str, float, str], list[Line]]:
    """Lines by server, rate and policy: the rounds of each."""
    found: dict[tuple[str, float, str], list[Line]] = {}
    for line in sorted(results, key=lambda line: (line["server"], line["rate"])):
        found.setdefault((line["server"], line["rate"], line["policy"]), []).append(line)
    return found


def median(rounds: Sequence[Line], *path: str) -> float:
    """Over rounds, of a number in each line; NaN where a round has none."""
    values = []
    for line in rounds:
        value: Any = line
        for name in path:
            value = value[name]
        values.append(float("nan") if value is None else float(value))
    return statistics.median(values)


def ratio(rounds: Sequence[Line], baseline: Sequence[Line]) -> tuple[float, float, float]:
    """The baseline's mean TPOT by the policy's: median of the rounds, the least and the most."""
    by_round = {line["round"]: line["tpot_ms"]["mean"] for line in baseline}
    found = [by_round[line["round"]] / line["tpot_ms"]["mean"] for line in rounds if line["round"] in by_round]
    return statistics.median(found), min(found), max(found)


def throughput(line: Line) -> float:
    """Tokens of answers per second."""
    return float(line["answer_tokens"] / line["seconds"])


def goodput(rounds: Sequence[Line], objective: Objective) -> float:
    """Requests per second that met the objective, median of the rounds."""
    rates = [objective.met(line) * len(line["requests"]) / line["seconds"] for line in rounds]
    return float(statistics.median(rates))


def served(results: Sequence[Line], objective: Objective) -> list[Line]:
    """For each server and policy: the highest measured rate at which, in the median round, SHARE of the requests met
    the objective at it and at every lower rate, with the tokens per second there; both None if there is none."""
    found: dict[tuple[str, str], Line] = {}
    failed: set[tuple[str, str]] = set()
    for (server, rate, policy), rounds in groups(results).items():
        key = (server, policy)
        best = found.setdefault(key, {"server": server, "policy": policy, "rate": None, "tokens": None})
        if key in failed or statistics.median(objective.met(line) for line in rounds) < SHARE:
            failed.add(key)
            continue
        best["rate"] = rate
        best["tokens"] = statistics.median(throughput(line) for line in rounds)
    return list(found.values())
