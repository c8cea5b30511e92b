"""The rule of `priced` once more, in plain sums over rows and experts: no tensor code."""

from hypothesis import assume

from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.priced import ALONE, ROUNDS, STEEP, Priced


def stays(policy: Priced, step: Step, asked: list[float], chance: list[float]) -> set[int]:
    """The experts that stay, where every row asks a price and its token is committed by a chance. Examples without
    voters, and those that float32 may decide otherwise, are passed by."""
    voters = [t for t, votes in enumerate(step.voters_T.tolist()) if votes]
    assume(len(voters) > 0)
    ids, values, part = step.own.ids.tolist(), policy.values(step).tolist(), ALONE if step.alone() else 1
    middle = sorted(asked[t] for t in voters)[len(voters) // 2] * part
    cost = [1.0] * step.spec.num_experts if step.load_cost_E is None else step.load_cost_E.tolist()
    free = set(step.free_E.nonzero().flatten().tolist())
    kept = common = {e for t in voters for e in ids[t]}
    lost = dict.fromkeys(voters, 0.0)
    for share in ROUNDS:
        harm, mixed = dict.fromkeys(kept | common, 0.0), dict.fromkeys(kept | common, 0.0)
        for t in voters:
            for e, v in zip(ids[t], values[t], strict=True):
                if e in harm:
                    x = lost[t]
                    added = chance[t] * ((x + v + STEEP * (x + v) ** 3) - (x + STEEP * x**3))
                    harm[e] += added / (middle * cost[e])
                    mixed[e] += added / (asked[t] * part * cost[e])
        margins = [abs(one / share - 1) for one in (*harm.values(), *mixed.values())]
        assume(min(margins, default=1.0) > 1e-5)  # float32 is compared
        common = {e for e in common if harm[e] > share}
        kept = {e for e in kept if mixed[e] > share}
        lost = {t: sum(v for e, v in zip(ids[t], values[t], strict=True) if e not in common | free) for t in voters}
    return kept
