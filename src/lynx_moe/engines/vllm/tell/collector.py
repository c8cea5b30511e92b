"""Where vLLM's API servers give out what its workers wrote (`shared/tell/collector.py`)."""

from typing import Any

from lynx_moe.engines.shared.tell import collector
from lynx_moe.engines.shared.wrap import wrap


def expose() -> None:
    """In prometheus_client's own registry, and where several API servers run in every registry that gathers what they
    have written: the server's /metrics makes one anew for each scrape."""
    from prometheus_client import REGISTRY, multiprocess

    collector.expose(REGISTRY)
    wrap(multiprocess.MultiProcessCollector, "__init__", _gathered)


def _gathered(original: Any, gathers: Any, registry: Any, *args: Any, **kwargs: Any) -> None:
    original(gathers, registry, *args, **kwargs)
    if registry is not None:
        collector.expose(registry)
