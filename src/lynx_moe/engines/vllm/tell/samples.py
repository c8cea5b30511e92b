"""A plan's numbers as samples of the metric families."""

from typing import Any

from lynx_moe.engines.shared.families import FAMILIES
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.shared.tell import samples as shared
from lynx_moe.engines.shared.tell.samples import Sample
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.shadows.sample import Sums
from lynx_moe.engines.vllm.step.verified import DEPTHS, Verified

FROM_DISK = {"loads": "read", "hits": "found", "bytes": "read_bytes", "seconds": "wait_seconds", "rounds": "rounds"}


def samples(plan: Plan) -> list[Sample]:
    """Every sample: what every engine tells, and what vLLM's alone has."""
    found = shared.samples(plan)
    if plan.rows.speculates:
        found += _verified(plan.verified)
    if plan.shadows is not None:
        found += _shadows(plan.shadows.sums)
    if plan.bounded is not None:
        found += _bounded(plan.bounded.state())
    if plan.pace is not None:
        found += _paced(plan.pace.state())
    if plan.tuned is not None:
        batches = plan.tuned.state()["batches"]
        found += [("lynx_moe_tuned_steps", [one["batch"], one["policy"]], one["steps"]) for one in batches]
    if plan.store is not None:
        found += _disk(plan.store.told())
    if plan.drafter is not None:
        found += _drafter(plan.drafter)
    state = None if plan.watch is None else plan.watch.state()
    found.append(("lynx_moe_guard_enabled", [], int(state is not None)))
    return found if state is None else found + _guard(state)


def _verified(verified: Verified) -> list[Sample]:
    found = [*shared.verified_rows(verified), ("lynx_moe_drafts", [], verified.drafts)]
    sums = {"lynx_moe_draft_tokens": verified.drafted, "lynx_moe_draft_tokens_accepted": verified.accepted}
    for name, by_depth in sums.items():
        found += [(name, [str(depth)], int(count)) for depth, count in enumerate(by_depth[:DEPTHS], 1)]
        if len(by_depth) > DEPTHS:
            found.append((name, [f"{DEPTHS + 1}+"], int(by_depth[DEPTHS:].sum())))
    chances = verified.chances[1 : 1 + DEPTHS]
    return found + [("lynx_moe_draft_chance", [str(depth)], float(p)) for depth, p in enumerate(chances, 1)]


def _shadows(sums: Sums) -> list[Sample]:
    found: list[Sample] = [
        ("lynx_moe_shadow_steps", [], sums.steps),
        ("lynx_moe_shadow_seconds", [], sums.seconds),
    ]
    for labels, effect in sums.effects.items():
        found += [("lynx_moe_kl_nats", [part, *labels], value) for part, value in effect.summary.items()]
        found.append(("lynx_moe_top1_agreements", [*labels], effect.agree))
        found.append(("lynx_moe_logprob_change_nats", [*labels], effect.change / effect.rows))
    return found


def _bounded(state: dict[str, Any]) -> list[Sample]:
    found: list[Sample] = [("lynx_moe_max_kl", [], state["max_kl"])]
    for one in state["batches"]:
        batch = one["batch"]
        found += [
            ("lynx_moe_max_kl_price", [batch], one["price"]),
            ("lynx_moe_max_kl_settled", [batch], int(one["settled"])),
        ]
        figures = {"mean": one["mean"], "upper": one["upper"]}
        found += [
            ("lynx_moe_max_kl_figure", [batch, name], value) for name, value in figures.items() if value is not None
        ]
        found += [("lynx_moe_max_kl_changes", [batch, way], count) for way, count in one["changes"].items()]
    return found


def _paced(state: dict[str, Any]) -> list[Sample]:
    found: list[Sample] = [("lynx_moe_slo_tpot_seconds", [], state["slo_tpot_ms"] / 1e3)]
    for one in state["batches"]:
        batch = one["batch"]
        found += [("lynx_moe_slo_share", [batch], one["share"]), ("lynx_moe_slo_missed", [batch], int(one["missed"]))]
        if one["step_ms"] is not None:
            found.append(("lynx_moe_slo_step_seconds", [batch], one["step_ms"] / 1e3))
        found += [("lynx_moe_slo_changes", [batch, way], count) for way, count in one["changes"].items()]
    return found


def _disk(told: dict[str, Any]) -> list[Sample]:
    found: list[Sample] = [("lynx_moe_expert_slots", [], told["slots"])]
    for kind, sums in told["steps"].items():
        if kind != Kind.IDLE.value:
            found += [(f"lynx_moe_experts_{FROM_DISK[name]}", [kind], value) for name, value in sums.items()]
    return found


def _drafter(plan: Plan) -> list[Sample]:
    """Under names of their own: no sum over a server's layers may take in those of its drafter."""
    found: list[Sample] = [("lynx_moe_drafter_passes", [kind], count) for kind, count in plan.steps.items()]
    found.append(("lynx_moe_drafter_policy_info", [plan.policy.spec], 1))
    if not plan.options.stats:
        return found
    for name, labels, value in shared.of_layers(plan):
        own = name.replace("lynx_moe_", "lynx_moe_drafter_")
        if own in FAMILIES:
            found.append((own, labels, value))
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
