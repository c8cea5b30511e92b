"""The server's half of the metrics: what the workers wrote, given out at vLLM's own /metrics."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from lynx_moe.engines.shared.families import COMMON, FAMILIES
from lynx_moe.engines.vllm.plugin import wrap
from lynx_moe.engines.vllm.tell.exporter import DIRECTORY

MODULES = ("vllm.v1.metrics.prometheus", "vllm.entrypoints.serve.instrumentator.metrics")
_directory: tempfile.TemporaryDirectory[str] | None = None
_exposed: list[Any] = []


class Workers(Collector):
    """Reads the workers' files anew at every scrape. A file that is gone or broken is left out."""

    def describe(self) -> list[Metric]:
        """No name is claimed beforehand: which families there are is up to the workers."""
        return []

    def collect(self) -> Iterator[Metric]:
        files = [json.loads(text) for text in _texts()]
        for name, (kind, meaning, labels) in FAMILIES.items():
            family = _make(kind, name, meaning, labels)
            for file in files:
                common = [file["labels"][label] for label in COMMON]
                mine = [(values, value) for family_name, values, value in file["samples"] if family_name == name]
                if kind == "summary":
                    parts = {values[0]: value for values, value in mine}
                    if parts:
                        family.add_metric(common, count_value=parts["count"], sum_value=parts["sum"])
                    continue
                for values, value in mine:
                    family.add_metric([*common, *values], value)
            if family.samples:
                yield family


def _texts() -> Iterator[str]:
    directory = os.environ.get(DIRECTORY)
    for path in sorted(Path(directory).glob("*.json")) if directory else ():
        try:
            yield path.read_text(encoding="utf-8")
        except OSError:
            continue


def _make(kind: str, name: str, meaning: str, labels: tuple[str, ...]) -> Any:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "summary": SummaryMetricFamily}
    return kinds[kind](name, meaning, labels=[*COMMON, *labels])


def expose() -> None:
    """Makes the directory that the workers will write to, unless a parent process has, and gives out what is in it:
    in prometheus_client's own registry, and in the one that vLLM makes where several API servers run."""
    from prometheus_client import REGISTRY

    global _directory
    if DIRECTORY not in os.environ:
        _directory = tempfile.TemporaryDirectory(prefix="lynx_moe-metrics-")
        os.environ[DIRECTORY] = _directory.name
    _register(REGISTRY)
    for name in MODULES:
        if name in sys.modules:
            wrap(sys.modules[name], "get_prometheus_registry", _registry)


def _registry(original: Any) -> Any:
    registry = original()
    _register(registry)
    return registry


def _register(registry: Any) -> None:
    if not any(one is registry for one in _exposed):
        registry.register(Workers())
        _exposed.append(registry)
