"""A server's /metrics, read once: the samples of lynx-moe, by name and labels."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from lynx_moe.engines.shared.families import COMMON, WORKERS, family_of
from lynx_moe.lab.watch.fetch import base_of, fetch

PREFIX = "lynx_moe_"
ENGINE = COMMON[:2]
Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


@dataclass(frozen=True)
class Scrape:
    """Samples by their full name (a counter's ends in `_total`), and the moment in seconds when they were read."""

    samples: Samples
    moment: float

    def total(self, name: str, **labels: str) -> float:
        """Over all samples of that name with these labels; 0 where there is none. Of pipeline stages it is the sum or
        the largest, as the family's word says; everything else is summed."""
        stages: dict[frozenset[tuple[str, str]], list[float]] = {}
        for given, value in self.samples.get(PREFIX + name, []):
            if labels.items() <= given.items():
                rest = frozenset(label for label in given.items() if label[0] != "stage")
                stages.setdefault(rest, []).append(value)
        whole = max if family_of(PREFIX + name).stages == "max" else sum
        return sum(whole(values) for values in stages.values())

    def engines(self) -> dict[tuple[str, ...], "Scrape"]:
        """Each engine's part, by its model and number; the stages of a pipeline are one engine."""
        found: dict[tuple[str, ...], dict[str, list[tuple[Mapping[str, str], float]]]] = {}
        for name, all_ in self.samples.items():
            for given, value in all_ if name != WORKERS else ():
                mine = found.setdefault(tuple(given[label] for label in ENGINE), {})
                mine.setdefault(name, []).append((given, value))
        return {engine: Scrape(found[engine], self.moment) for engine in sorted(found)}

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label takes, in order."""
        return sorted({given[label] for given, _ in self.samples.get(PREFIX + name, [])})

    def label(self, name: str, label: str) -> str:
        """A label of all samples, by stage where stages differ; empty where there is none."""
        found = {given.get("stage", ""): given[label] for given, _ in self.samples.get(PREFIX + name, [])}
        if len(set(found.values())) < 2:
            return next(iter(found.values()), "")
        return ", ".join(f"{value} in stage {stage}" for stage, value in sorted(found.items()))

    def since(self, earlier: "Scrape | None") -> "Scrape":
        """What was counted since an earlier scrape of the same server: counters as differences, gauges as they are.
        Everything that was ever counted where there is no earlier one, or the counters have begun anew."""
        if earlier is None:
            return self
        before = {
            (name, *sorted(given.items())): value for name, all_ in earlier.samples.items() for given, value in all_
        }
        samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for name, all_ in self.samples.items():
            counts = name.endswith(("_total", "_sum", "_count"))
            for given, value in all_:
                old = before.get((name, *sorted(given.items())), 0.0) if counts else 0.0
                if counts and old > value:  # a gauge may be negative
                    return self
                samples.setdefault(name, []).append((given, value - old))
        return Scrape(samples, self.moment)


def scrape(url: str, timeout: float = 5.0) -> Scrape:
    """Reads URL/metrics. Raises ValueError where nobody answers, or the server has no metrics of lynx-moe."""
    address = base_of(url).removesuffix("/metrics") + "/metrics"
    found = parse(fetch(address, timeout))
    if not found:
        raise ValueError(
            f"{address} has no metrics of lynx-moe: the server runs without a policy, or with metrics_every=0"
        )
    if found.keys() == {WORKERS}:
        raise ValueError(
            f"{address} has no numbers of any worker: the model is not built yet, its workers have ended, or they "
            "cannot write to the metrics directory (then the server's log says why)"
        )
    return Scrape(found, time.monotonic())


def parse(text: str, *beginnings: str) -> Samples:
    """The samples in a text exposition whose names begin so; lynx-moe's where nothing is said. Raises ValueError if it
    is none."""
    begin = beginnings or (PREFIX,)
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise ValueError("prometheus-client is not installed; vLLM brings it: pip install prometheus-client") from None
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    lines = "".join(f"{line}\n" for line in text.split("\n") if any(one in line for one in begin))
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if sample.name.startswith(begin):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found
