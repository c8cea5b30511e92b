"""The Prometheus metrics of an engine, by name. A counter's samples end in `_total`.

Every sample also has the labels `model_name` and `engine`, as vLLM's own metrics do, and `stage`, the pipeline stage.
`layers` is a group of consecutive MoE layers, at most GROUPS of them, such as 00-05; `step` is decode, mixed or single.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

GROUPS = 8
COMMON = ("model_name", "engine", "stage")
SHADOW = "shadow"  # beside the kinds of steps, of what is read from a disk: passes that do not stay


@dataclass(frozen=True)
class Family:
    """One metric: its Prometheus type, what it counts, its own labels, and what it is of a whole engine.

    stages: "sum" where every pipeline stage tells of its own layers; "max" where all tell the same (every step passes
    every stage), or the stage that is furthest counts (each has a guard of its own). ranks: "same" where every
    tensor-parallel rank would tell the same; "own" where it would tell of its own experts or its own time. Of the ranks
    only the first one tells.
    """

    kind: Literal["counter", "gauge", "summary"]
    meaning: str
    labels: tuple[str, ...] = ()
    stages: Literal["sum", "max"] = "max"
    ranks: Literal["same", "own"] = "same"

    @property
    def text(self) -> str:
        """The help text at /metrics."""
        own = ", of the first rank" if self.ranks == "own" else ""
        return f"{self.meaning} (Over pipeline stages: {self.stages}{own}.)"


FAMILIES = {
    "lynx_moe_distinct_experts_before": Family(
        "counter",
        "Distinct experts that the model's own routing would have loaded, summed over layers and steps.",
        ("layers", "step"),
        stages="sum",
        ranks="own",
    ),
    "lynx_moe_distinct_experts_after": Family(
        "counter",
        "Distinct experts that the expert kernels got, summed over layers and steps.",
        ("layers", "step"),
        stages="sum",
        ranks="own",
    ),
    "lynx_moe_layer_steps": Family(
        "counter", "Layers times steps that the two sums are over.", ("layers", "step"), stages="sum"
    ),
    "lynx_moe_unchanged_layer_steps": Family(
        "counter",
        "Layers times steps that kept the model's own routing: nothing to gain.",
        ("layers", "step"),
        stages="sum",
    ),
    "lynx_moe_rows_remapped": Family(
        "counter", "Rows whose experts were changed, summed over layers and steps.", ("layers", "step"), stages="sum"
    ),
    "lynx_moe_rows": Family(
        "counter",
        "Rows (tokens) of all steps: remappable by the policy, exact by request, or bypassed (others).",
        ("handling",),
    ),
    "lynx_moe_price_rows": Family(
        "counter",
        "Rows that may be remapped, by the price that they ask, under policies that know prices; 0 is vanilla.",
        ("price",),
    ),
    "lynx_moe_verified_rows": Family(
        "counter",
        "Rows that verified drafts, each draft's first row included: remappable by the policy, or exact.",
        ("handling",),
    ),
    "lynx_moe_drafts": Family("counter", "Drafts that were verified."),
    "lynx_moe_draft_tokens": Family("counter", "Drafted tokens that were verified; deep ones are 9+.", ("depth",)),
    "lynx_moe_draft_tokens_accepted": Family("counter", "Of these, the accepted ones.", ("depth",)),
    "lynx_moe_draft_chance": Family(
        "gauge", "Running chance that a drafted token of this depth is committed.", ("depth",)
    ),
    "lynx_moe_drafter_passes": Family("counter", "Passes of a model that drafts, by kind as steps are.", ("kind",)),
    "lynx_moe_drafter_layer_steps": Family("counter", "As lynx_moe_layer_steps, of its layers.", ("layers", "step")),
    "lynx_moe_drafter_distinct_experts_before": Family(
        "counter", "As lynx_moe_distinct_experts_before, of its layers.", ("layers", "step"), ranks="own"
    ),
    "lynx_moe_drafter_distinct_experts_after": Family(
        "counter", "As lynx_moe_distinct_experts_after, of its layers.", ("layers", "step"), ranks="own"
    ),
    "lynx_moe_drafter_policy_info": Family("gauge", "The policy of its layers.", ("policy",)),
    "lynx_moe_experts_read": Family(
        "counter", "Experts that were read from the disk, by kind of step.", ("kind",), stages="sum", ranks="own"
    ),
    "lynx_moe_experts_found": Family(
        "counter", "Experts that a step needed and found in memory.", ("kind",), stages="sum", ranks="own"
    ),
    "lynx_moe_experts_read_bytes": Family(
        "counter", "Bytes of the experts that were read.", ("kind",), stages="sum", ranks="own"
    ),
    "lynx_moe_experts_wait_seconds": Family(
        "counter", "Time that steps waited for experts from the disk.", ("kind",), stages="sum", ranks="own"
    ),
    "lynx_moe_experts_rounds": Family(
        "counter",
        "Layers times steps whose experts were more than the slots, and came in turns.",
        ("kind",),
        stages="sum",
        ranks="own",
    ),
    "lynx_moe_expert_slots": Family(
        "gauge", "Experts that fit into memory, all layers together.", stages="sum", ranks="own"
    ),
    "lynx_moe_steps": Family("counter", "Engine steps: decode, mixed, prefill, or single (one row alone).", ("kind",)),
    "lynx_moe_decision_seconds": Family(
        "summary",
        "Host time of the policy's decisions, one per layer and step, counting included. Not on GPUs.",
        stages="sum",
        ranks="own",
    ),
    "lynx_moe_layers": Family(
        "gauge", "MoE layers that the policy routes, and that keep vLLM's own routing.", ("routing",), stages="sum"
    ),
    "lynx_moe_policy_info": Family(
        "gauge", "The policy in force, and the one that was asked for.", ("policy", "asked")
    ),
    "lynx_moe_policy_changes": Family("counter", "Changes of the policy by the operator, or by the guard.", ("by",)),
    "lynx_moe_guard_enabled": Family("gauge", "1 where a quality guard watches."),
    "lynx_moe_guard_rung": Family("gauge", "Rung of the guard's ladder: 0 is the policy as asked for."),
    "lynx_moe_guard_last_rung": Family("gauge", "The ladder's last rung, which is vanilla."),
    "lynx_moe_guard_figure": Family(
        "gauge",
        "Running figures, shares from 0: of the rung in force, and of the one above while backed off.",
        ("figure", "rung"),
    ),
    "lynx_moe_guard_bound": Family("gauge", "The operator's bounds on the figures.", ("figure",)),
    "lynx_moe_guard_samples": Family("counter", "Samples of each figure.", ("figure",)),
    "lynx_moe_guard_changes": Family("counter", "Changes of the rung.", ("direction",)),
    "lynx_moe_guard_seconds": Family(
        "counter", "Host time of the guard, shadow steps included.", stages="sum", ranks="own"
    ),
    "lynx_moe_shadow_steps": Family("counter", "Steps in which the model ran once more, with every row exact."),
    "lynx_moe_shadow_seconds": Family("counter", "What these passes cost, in the last stage's host time. On CPUs."),
    "lynx_moe_kl_nats": Family(
        "summary",
        "KL(exact || policy) of the next token of rows that may be remapped, measured in shadow steps.",
        ("batch", "policy"),
    ),
    "lynx_moe_top1_agreements": Family(
        "counter", "Of the rows of lynx_moe_kl_nats, those whose most likely token stays.", ("batch", "policy")
    ),
    "lynx_moe_logprob_change_nats": Family(
        "gauge",
        "Mean change of the log-probability of the token that the policy's pass ranks first.",
        ("batch", "policy"),
    ),
    "lynx_moe_max_kl": Family("gauge", "The operator's bound on the mean KL, in nats."),
    "lynx_moe_max_kl_price": Family("gauge", "The price that steps of this size ask; 0 is exact.", ("batch",)),
    "lynx_moe_max_kl_figure": Family(
        "gauge",
        "KL of the price in force: the mean of the last rows, and its upper confidence bound.",
        ("batch", "figure"),
    ),
    "lynx_moe_max_kl_settled": Family("gauge", "1 where no higher price is being looked for.", ("batch",)),
    "lynx_moe_slo_tpot_seconds": Family("gauge", "The operator's objective for the time per output token."),
    "lynx_moe_slo_share": Family("gauge", "The share of their prices that rows of such steps ask.", ("batch",)),
    "lynx_moe_slo_step_seconds": Family("gauge", "Median time of the last steps that only decode.", ("batch",)),
    "lynx_moe_slo_missed": Family(
        "gauge", "1 where steps take longer than the objective though rows ask their whole prices.", ("batch",)
    ),
    "lynx_moe_slo_changes": Family("counter", "Changes of the share.", ("batch", "direction")),
    "lynx_moe_tuned_steps": Family(
        "counter", "Steps of this size, decided by the policy that was tuned for it.", ("batch", "policy")
    ),
    "lynx_moe_max_kl_changes": Family("counter", "Changes of the price.", ("batch", "direction")),
}
WORKERS = "lynx_moe_workers"  # the server's own, without labels: its workers may have told nothing yet
WORKERS_MEANING = "Workers, one a pipeline stage, whose numbers the server can read."


def family_of(sample: str) -> Family:
    """The family of a sample's name. Raises KeyError if there is none."""
    for suffix in ("_total", "_sum", "_count"):
        if sample not in FAMILIES:
            sample = sample.removesuffix(suffix)
    return FAMILIES[sample]


def groups(numbers: list[int]) -> list[tuple[str, list[int]]]:
    """At most GROUPS groups of nearly equal size: the label, and the places in `numbers` (layer numbers, ascending)."""
    count = min(GROUPS, len(numbers))
    edges = [len(numbers) * place // max(count, 1) for place in range(count + 1)]
    found = []
    for first, end in pairwise(edges):
        names = [f"{numbers[place]:02d}" for place in (first, end - 1)]
        found.append(("-".join(dict.fromkeys(names)), list(range(first, end))))
    return found
