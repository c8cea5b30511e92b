"""Where vLLM's server gives out metrics (`shared/tell/collector.py`)."""

import sys
from typing import Any

from lynx_moe.engines.shared.tell import collector
from lynx_moe.engines.shared.wrap import wrap

MODULES = ("vllm.v1.metrics.prometheus", "vllm.entrypoints.serve.instrumentator.metrics")


def expose() -> None:
    """In prometheus_client's own registry, and in the one that vLLM makes where several API servers run."""
    from prometheus_client import REGISTRY

    collector.expose(REGISTRY)
    for name in MODULES:
        if name in sys.modules:
            wrap(sys.modules[name], "get_prometheus_registry", _registry)


def _registry(original: Any) -> Any:
    registry = original()
    collector.expose(registry)
    return registry
