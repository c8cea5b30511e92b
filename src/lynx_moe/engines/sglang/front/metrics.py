"""The numbers on SGLang's own /metrics: its scheduler writes them (`shared/tell`), its server gives them out."""

import os
import time
from collections.abc import Callable
from typing import Any

from lynx_moe.engines.sglang.step import cache
from lynx_moe.engines.sglang.step.plan import Plan, active
from lynx_moe.engines.shared.refusals import refusing
from lynx_moe.engines.shared.tell import collector
from lynx_moe.engines.shared.tell.exporter import DIRECTORY, Teller, Writer, write_on
from lynx_moe.engines.shared.tell.samples import Sample, samples, verified_rows


def add_prometheus_middleware(original: Callable[..., Any], app: Any) -> Any:
    """Around SGLang's function of this name, which makes the registry of /metrics; beside it come our routes."""
    import prometheus_client

    from lynx_moe.engines.sglang.front import endpoint

    endpoint.attach(app)

    made = prometheus_client.CollectorRegistry

    def with_ours(*args: Any, **given: Any) -> Any:
        registry = made(*args, **given)
        collector.expose(registry)
        return registry

    prometheus_client.CollectorRegistry = with_ours  # type: ignore[assignment, misc]
    try:
        return original(app)
    finally:
        prometheus_client.CollectorRegistry = made  # type: ignore[misc]


def start(scheduler: Any, *_: Any, **__: Any) -> None:
    """Before Scheduler.get_init_info, when it is complete: writes the plan's numbers while it lives. Raises ValueError
    where its radix cache would share what was remapped."""
    plan = active()
    if plan is None:
        return
    reason = cache.refusal(scheduler.tree_cache)
    if reason is not None:
        with refusing():
            raise ValueError(reason)
    every = plan.options.metrics_every
    if every and DIRECTORY in os.environ and _is_first_rank():
        labels = {"model_name": _served_name(), "engine": "0", "stage": "0"}
        teller = Teller(labels=labels, instance=str(os.getpid()), since=time.time(), every=every)
        write_on(Writer(plan, teller, told), scheduler)


def told(plan: Plan) -> list[Sample]:
    """The numbers that every engine tells, and of drafts the rows that verify them."""
    return samples(plan) + (verified_rows(plan.verified) if plan.rows.speculates else [])


def _is_first_rank() -> bool:
    from sglang.srt.runtime_context import get_parallel

    return int(get_parallel().tp_rank) == 0


def _served_name() -> str:
    from sglang.srt.runtime_context import get_serving

    return str(get_serving().served_model_name)
