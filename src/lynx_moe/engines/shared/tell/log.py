"""The log line of a worker, every now and then."""

import time

from lynx_moe.engines.shared.step.deciding import Deciding


def log_line(plan: Deciding) -> str | None:
    """What happened since counting began, if a line is due and there were decode steps since the last one."""
    (then, steps_then), every = plan.last_log, plan.options.log_every
    steps = plan.steps["decode"]
    if not every or not plan.options.stats or time.monotonic() - then < every or steps == steps_then:
        return None
    plan.last_log = (time.monotonic(), steps)
    stats = plan.stats()
    return (
        f"lynx_moe: {stats.mean_before:.1f} -> {stats.mean_after:.1f} distinct experts per layer, {steps} decode "
        f"steps, {stats.steps['mixed']} mixed, {stats.steps['prefill']} prefill, {stats.steps['single']} with one "
        f"row (policy {stats.policy})"
    )
