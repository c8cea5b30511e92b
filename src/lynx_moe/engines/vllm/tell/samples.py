"""A plan's numbers as samples of the metric families."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lynx_moe.calibration.artifact import layer_number
from lynx_moe.engines.shared.families import groups
from lynx_moe.engines.shared.metrics import COLUMNS, KINDS
from lynx_moe.engines.vllm.step.plan import Plan

SUMS = {
    "before": "lynx_moe_distinct_experts_before",
    "after": "lynx_moe_distinct_experts_after",
    "changed_rows": "lynx_moe_rows_remapped",
    "unchanged_steps": "lynx_moe_unchanged_layer_steps",
}
Sample = tuple[str, list[str], float]


def samples(plan: Plan) -> list[Sample]:
    """Every sample: the family's name, the values of its own labels, the value. A summary gives two numbers in turn."""
    found: list[Sample] = [("lynx_moe_steps", [kind], count) for kind, count in plan.steps.items()]
    found += _rows(plan)
    found += [("lynx_moe_price_rows", [price], count) for price, count in plan.tiers.told.items()]
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
