"""The numbers that every engine tells as samples of the metric families."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lynx_moe.calibration.artifact import layer_number
from lynx_moe.engines.shared.families import groups
from lynx_moe.engines.shared.metrics import COLUMNS, KINDS
from lynx_moe.engines.shared.step.deciding import Deciding
from lynx_moe.engines.shared.step.verified import VerifiedRows

SUMS = {
    "before": "lynx_moe_distinct_experts_before",
    "after": "lynx_moe_distinct_experts_after",
    "changed_rows": "lynx_moe_rows_remapped",
    "unchanged_steps": "lynx_moe_unchanged_layer_steps",
}
Sample = tuple[str, list[str], float]


def samples(plan: Deciding) -> list[Sample]:
    """Every sample: the family's name, the values of its own labels, the value. A summary gives two numbers in turn."""
    found: list[Sample] = [("lynx_moe_steps", [kind], count) for kind, count in plan.steps.items()]
    found += _rows(plan)
    found += [("lynx_moe_price_rows", [price], count) for price, count in plan.tiers.told.items()]
    if plan.options.stats and plan.has_begun:
        found += of_layers(plan)
    if plan.device.type == "cpu":
        found.append(("lynx_moe_decision_seconds", ["count"], plan.decisions))
        found.append(("lynx_moe_decision_seconds", ["sum"], plan.decision_seconds))
    reached = sum(layer.name not in plan.bypassed for layer in plan.layers)
    found += [("lynx_moe_layers", ["policy"], reached), ("lynx_moe_layers", ["own"], len(plan.bypassed))]
    found += [("lynx_moe_policy_changes", [by], count) for by, count in plan.changes.items()]
    found.append(("lynx_moe_policy_info", [plan.named, plan.asked], 1))
    return found


def _rows(plan: Deciding) -> list[Sample]:
    total, remappable, exact = (sum(sums[place] for sums in plan.row_sums.values()) for place in range(3))
    handled = {"remappable": remappable, "exact": exact, "bypassed": total - remappable - exact}
    return [("lynx_moe_rows", [name], count) for name, count in handled.items()]


def verified_rows(verified: VerifiedRows) -> list[Sample]:
    """Of an engine that drafts."""
    exact = verified.rows - verified.remappable
    handled = {"remappable": verified.remappable, "exact": exact}
    return [("lynx_moe_verified_rows", [name], count) for name, count in handled.items()]


def of_layers(plan: Deciding) -> list[Sample]:
    """The sums over a plan's layers, by groups of them."""
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


def _aside(device: torch.device) -> AbstractContextManager[Any]:
    """Reading waits for a stream of its own, not for the steps."""
    if device.type != "cuda":
        return nullcontext()
    aside: AbstractContextManager[Any] = torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
    return aside
