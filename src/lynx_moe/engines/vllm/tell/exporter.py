"""The worker's half of the metrics: a plan's numbers, written to a file every second for the server to read.

vLLM's engine is another process than its API server, and has no way to carry a plug-in's numbers there: the statistics
that travel with each step have fixed fields, and a call into the workers would wait for the step that runs. So numbers
travel as prometheus_client's own multi-process mode does it, by files in a directory that all processes know, but a
directory of their own: vLLM's metrics stay as they are. A thread of its own writes; no step waits for it.
"""

import json
import os
import threading
import time
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lynx_moe.calibration.artifact import layer_number
from lynx_moe.engines.shared.families import groups
from lynx_moe.engines.shared.metrics import COLUMNS, KINDS
from lynx_moe.engines.vllm.step.plan import Plan, is_active

DIRECTORY = "LYNX_MOE_METRICS_DIR"  # an environment variable: options are part of vLLM's compile cache key
SUMS = {
    "before": "lynx_moe_distinct_experts_before",
    "after": "lynx_moe_distinct_experts_after",
    "changed_rows": "lynx_moe_rows_remapped",
    "unchanged_steps": "lynx_moe_unchanged_layer_steps",
}
Sample = tuple[str, list[str], float]


def start(plan: Plan, labels: dict[str, str]) -> None:
    """Writes the plan's numbers while the plan lives; once more after the last step."""
    directory = os.environ.get(DIRECTORY)
    if not plan.options.metrics_every or directory is None:
        return
    target = Path(directory) / f"{os.getpid()}-{id(plan)}.json"
    thread = threading.Thread(target=_run, args=(weakref.ref(plan), labels, target), name="lynx_moe metrics")
    thread.daemon = True
    thread.start()


def _run(plan_ref: weakref.ref[Plan], labels: dict[str, str], target: Path) -> None:
    seen: Any = None
    while (plan := plan_ref()) is not None:
        every, now = plan.options.metrics_every, _version(plan) if is_active(plan) else None
        if now is None:  # another engine has taken over in this process
            target.unlink(missing_ok=True)
        elif now != seen:
            write(plan, labels, target)
        seen = now
        del plan
        time.sleep(every)
    target.unlink(missing_ok=True)


def _version(plan: Plan) -> Any:
    return (tuple(plan.steps.values()), tuple(plan.policy_changes.values()), id(plan.watch))


def write(plan: Plan, labels: dict[str, str], target: Path) -> None:
    """The plan's numbers as JSON; an old file is replaced whole."""
    part = target.with_suffix(".part")
    part.write_text(json.dumps({"labels": labels, "samples": samples(plan)}))
    try:
        part.replace(target)
    except OSError:  # the server has gone, and its directory with it
        return


def samples(plan: Plan) -> list[Sample]:
    """Every sample: the family's name, the values of its own labels, the value. A summary gives two numbers in turn."""
    found: list[Sample] = [("lynx_moe_steps", [kind], count) for kind, count in plan.steps.items()]
    found += _rows(plan)
    if plan.options.stats and plan.has_begun:
        found += _layers(plan)
    if plan.device.type == "cpu":
        found.append(("lynx_moe_decision_seconds", ["count"], plan.decisions))
        found.append(("lynx_moe_decision_seconds", ["sum"], plan.decision_seconds))
    reached = sum(layer.name not in plan.bypassed for layer in plan.layers)
    found += [("lynx_moe_layers", ["policy"], reached), ("lynx_moe_layers", ["own"], len(plan.bypassed))]
    found += [("lynx_moe_policy_changes", [by], count) for by, count in plan.policy_changes.items()]
    state = None if plan.watch is None else plan.watch.state()
    asked = plan.policy.spec if state is None else state["rungs"][0]
    found.append(("lynx_moe_policy_info", [plan.policy.spec, asked], 1))
    found.append(("lynx_moe_guard_enabled", [], int(state is not None)))
    return found if state is None else found + _guard(state)


def _rows(plan: Plan) -> list[Sample]:
    total, remappable, exact = (sum(sums[place] for sums in plan.row_sums.values()) for place in range(3))
    handled = {"remappable": remappable, "exact": exact, "bypassed": total - remappable - exact}
    return [("lynx_moe_rows", [name], count) for name, count in handled.items()]


def _layers(plan: Plan) -> list[Sample]:
    with _aside(plan.device):
        totals = plan.counters.read()
    places = [place for place, layer in enumerate(plan.layers) if layer.name not in plan.bypassed]
    found: list[Sample] = []
    for label, members in groups([layer_number(plan.layers[place].name) for place in places]):
        for kind, step in enumerate(KINDS):
            for column, name in enumerate(COLUMNS):
                value = sum(totals[places[member]][kind][column] for member in members)
                found.append((SUMS[name], [label, step], value))
            found.append(("lynx_moe_layer_steps", [label, step], len(members) * plan.acted[step]))
    return found


def _guard(state: dict[str, Any]) -> list[Sample]:
    found: list[Sample] = [
        ("lynx_moe_guard_rung", [], state["rung"]),
        ("lynx_moe_guard_last_rung", [], len(state["rungs"]) - 1),
        ("lynx_moe_guard_seconds", [], state["seconds"]),
    ]
    for rung in ("now", "above"):
        found += [("lynx_moe_guard_figure", [figure, rung], value) for figure, value in state[rung].items()]
    for name, key in (("bound", "bounds"), ("samples", "samples"), ("changes", "changes")):
        found += [(f"lynx_moe_guard_{name}", [label], value) for label, value in state[key].items()]
    return found


def _aside(device: torch.device) -> AbstractContextManager[Any]:
    """Reading waits for a stream of its own, not for the steps."""
    if device.type != "cuda":
        return nullcontext()
    aside: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return aside


def labels_of(vllm_config: Any) -> dict[str, str] | None:
    """The labels that all samples of this worker share; None where another rank tells the same (tensor parallelism)."""
    from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

    if get_tensor_model_parallel_rank() > 0:
        return None
    return {
        "model_name": str(vllm_config.model_config.served_model_name),
        "engine": str(vllm_config.parallel_config.data_parallel_rank),
        "stage": str(get_pp_group().rank_in_group),
    }
