"""A server's /metrics, read once: the samples of lynx-moe, by name and labels."""

import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.error import HTTPError

PREFIX = "lynx_moe_"
Samples = Mapping[str, list[tuple[Mapping[str, str], float]]]


@dataclass(frozen=True)
class Scrape:
    """Samples by their full name (a counter's ends in `_total`), and the moment in seconds when they were read."""

    samples: Samples
    moment: float

    def total(self, name: str, **labels: str) -> float:
        """The sum over all samples of that name with these labels; 0 where there is none."""
        found = self.samples.get(PREFIX + name, [])
        return sum(value for given, value in found if labels.items() <= given.items())

    def values(self, name: str, label: str) -> list[str]:
        """The values that a label takes, in order."""
        return sorted({given[label] for given, _ in self.samples.get(PREFIX + name, [])})

    def label(self, name: str, label: str) -> str:
        """A label of the first sample; empty where there is none."""
        found = self.samples.get(PREFIX + name, [])
        return found[0][0][label] if found else ""

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
                if old > value:
                    return self
                samples.setdefault(name, []).append((given, value - old))
        return Scrape(samples, self.moment)


def scrape(url: str, timeout: float = 5.0) -> Scrape:
    """Reads URL/metrics. Raises ValueError where nobody answers, or the server has no metrics of lynx-moe."""
    base = url if "://" in url else f"http://{url}"
    address = base.rstrip("/").removesuffix("/metrics") + "/metrics"
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            text = answer.read().decode()
    except HTTPError as error:
        raise ValueError(
            f"{address} answers {error.code} {error.reason}; is it the address of a vLLM server?"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{address} cannot be read ({reason}); is the server up, and the address right?") from None
    found = parse(text)
    if not found:
        raise ValueError(
            f"{address} has no metrics of lynx-moe: the server runs without a policy, with metrics_every=0, or has not "
            "built its model yet"
        )
    return Scrape(found, time.monotonic())


def parse(text: str) -> Samples:
    """The samples of lynx-moe in a text exposition. Raises ValueError if it is none."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        raise ValueError("prometheus-client is not installed; vLLM brings it: pip install prometheus-client") from None
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    lines = "".join(f"{line}\n" for line in text.splitlines() if PREFIX in line)
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if sample.name.startswith(PREFIX):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found
