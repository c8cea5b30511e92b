"""The Prometheus metrics of an engine: name -> (type, help, labels). A counter's samples end in `_total`.

Every sample also has the labels `model_name` and `engine`, as vLLM's own metrics do, and `stage`, the pipeline stage.
`layers` is a group of consecutive MoE layers, at most GROUPS of them, such as 00-05; `step` is decode or mixed.
"""

from itertools import pairwise

GROUPS = 8
COMMON = ("model_name", "engine", "stage")
FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lynx_moe_distinct_experts_before": (
        "counter",
        "Distinct experts that the model's own routing would have loaded, summed over layers and steps.",
        ("layers", "step"),
    ),
    "lynx_moe_distinct_experts_after": (
        "counter",
        "Distinct experts that the expert kernels got, summed over layers and steps.",
        ("layers", "step"),
    ),
    "lynx_moe_layer_steps": ("counter", "Layers times steps that the two sums are over.", ("layers", "step")),
    "lynx_moe_unchanged_layer_steps": (
        "counter",
        "Layers times steps that kept the model's own routing: nothing to gain.",
        ("layers", "step"),
    ),
    "lynx_moe_rows_remapped": (
        "counter",
        "Rows whose experts were changed, summed over layers and steps.",
        ("layers", "step"),
    ),
    "lynx_moe_rows": (
        "counter",
        "Rows (tokens) of all steps: remappable by the policy, exact by request, or bypassed (others).",
        ("handling",),
    ),
    "lynx_moe_steps": (
        "counter",
        "Engine steps: decode, mixed, prefill, or single (one row alone).",
        ("kind",),
    ),
    "lynx_moe_decision_seconds": (
        "summary",
        "Host time of the policy's decisions, one per layer and step, counting included. Not on GPUs.",
        (),
    ),
    "lynx_moe_layers": ("gauge", "MoE layers that the policy routes, and that keep vLLM's own routing.", ("routing",)),
    "lynx_moe_policy_info": ("gauge", "The policy in force, and the one that was asked for.", ("policy", "asked")),
    "lynx_moe_policy_changes": ("counter", "Changes of the policy by the operator, or by the guard.", ("by",)),
    "lynx_moe_guard_enabled": ("gauge", "1 where a quality guard watches.", ()),
    "lynx_moe_guard_rung": ("gauge", "Rung of the guard's ladder: 0 is the policy as asked for.", ()),
    "lynx_moe_guard_last_rung": ("gauge", "The ladder's last rung, which is vanilla.", ()),
    "lynx_moe_guard_figure": (
        "gauge",
        "Running figures, shares from 0: of the rung in force, and of the one above while backed off.",
        ("figure", "rung"),
    ),
    "lynx_moe_guard_bound": ("gauge", "The operator's bounds on the figures.", ("figure",)),
    "lynx_moe_guard_samples": ("counter", "Samples of each figure.", ("figure",)),
    "lynx_moe_guard_changes": ("counter", "Changes of the rung.", ("direction",)),
    "lynx_moe_guard_seconds": ("counter", "Host time of the guard, shadow steps included.", ()),
}


def groups(numbers: list[int]) -> list[tuple[str, list[int]]]:
    """At most GROUPS groups of nearly equal size: the label, and the places in `numbers` (layer numbers, ascending)."""
    count = min(GROUPS, len(numbers))
    edges = [len(numbers) * place // max(count, 1) for place in range(count + 1)]
    found = []
    for first, end in pairwise(edges):
        names = [f"{numbers[place]:02d}" for place in (first, end - 1)]
        found.append(("-".join(dict.fromkeys(names)), list(range(first, end))))
    return found
