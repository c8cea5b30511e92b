"""The server's half of the metrics: what the workers wrote, given out at the engine's own /metrics."""

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from lynx_moe.engines.shared.families import COMMON, FAMILIES, WORKERS, WORKERS_MEANING
from lynx_moe.engines.shared.tell.exporter import DIRECTORY

KINDS: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "summary": SummaryMetricFamily}
PATIENCE_SECONDS, PATIENCE = 5.0, 5  # a worker that is alive says so at every interval
_directory: tempfile.TemporaryDirectory[str] | None = None
_exposed: WeakSet[Any] = WeakSet()


class Workers(Collector):
    """Reads the workers' files anew at every scrape. A file that is gone, broken or old is left out, and so is an
    engine that another one has followed under the same labels: an engine's own metrics are of the newest one, too."""

    def describe(self) -> list[Metric]:
        """No name is claimed beforehand: which families there are is up to the workers."""
        return []

    def collect(self) -> Iterator[Metric]:
        files = _newest(_told())
        yield GaugeMetricFamily(WORKERS, WORKERS_MEANING, value=len(files))
        for name, family in FAMILIES.items():
            made = KINDS[family.kind](name, family.text, labels=[*COMMON, *family.labels])
            for file in files:
                common = [file["teller"]["labels"][label] for label in COMMON]
                mine = [(values, value) for other, values, value in file["samples"] if other == name]
                if family.kind == "summary":
                    parts: dict[tuple[str, ...], dict[str, float]] = {}
                    for (part, *values), value in mine:
                        parts.setdefault(tuple(values), {})[part] = value
                    for own, one in parts.items():
                        made.add_metric([*common, *own], count_value=one["count"], sum_value=one["sum"])
                    continue
                for values, value in mine:
                    made.add_metric([*common, *values], value)
            if made.samples:
                yield made


def _told() -> Iterator[dict[str, Any]]:
    """What the workers say that can say something."""
    directory = os.environ.get(DIRECTORY)
    for path in sorted(Path(directory).glob("*.json")) if directory else ():
        try:
            file = json.loads(path.read_text(encoding="utf-8"))
            patience = PATIENCE_SECONDS + PATIENCE * file["teller"]["every"]
            age = time.time() - path.stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if age < patience:
            yield file


def _newest(files: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every model's engines of one number the one that was made last, with all its stages."""
    engines: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for file in files:
        teller = file["teller"]
        labels = teller["labels"]["model_name"], teller["labels"]["engine"]
        engines.setdefault(labels, {}).setdefault(teller["instance"], []).append(file)
    latest = [max(same.values(), key=lambda all_: max(map(_since, all_))) for same in engines.values()]
    return [file for all_ in latest for file in all_]


def _since(file: dict[str, Any]) -> float:
    return float(file["teller"]["since"])


def expose(registry: Any) -> None:
    """Makes the directory that the workers will write to, unless a parent process has, and gives out what is in it in
    a registry of prometheus_client."""
    place()
    if registry not in _exposed:
        registry.register(Workers())
        _exposed.add(registry)


def place() -> None:
    """The directory is there, and processes that are started from now on know it."""
    global _directory
    if DIRECTORY not in os.environ:
        _directory = tempfile.TemporaryDirectory(prefix="lynx_moe-metrics-")
        os.environ[DIRECTORY] = _directory.name
