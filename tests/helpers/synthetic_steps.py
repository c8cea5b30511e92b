"""Decode steps of a machine whose formula is known, as samples of `lynx-moe doctor`."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

EXPERTS, TOP_K = 128, 8
SIZES = (1, 2, 4, 8, 16, 32, 64)
KEEPS = {"vanilla": 1.0, "priced:price=0.01": 0.8, "priced": 0.5, "priced:price=0.1": 0.35, "priced:price=1": 0.2}

Step = Callable[[float, float], float]  # rows, experts -> milliseconds


def own(rows: int) -> float:
    """Distinct experts of so many rows that choose evenly."""
    return EXPERTS * (1 - (1 - TOP_K / EXPERTS) ** rows)


def kept(policy: str, rows: int) -> float:
    """Distinct experts that a policy leaves of these."""
    return own(rows) if rows == 1 else max(TOP_K / 2, KEEPS[policy] * own(rows))


def samples(
    step: Step,
    *,
    sizes: Sequence[int] = SIZES,
    policies: Sequence[str] = tuple(KEEPS),
    rounds: int = 5,
    noise: float = 0.0,
    decision_ms: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A sample for every batch size, round and policy. noise: standard deviation of a sample, as a share of it; one
    round in ten takes half as long again, as if something else ran."""
    rng = random.Random(seed)
    found = []
    for batch in sizes:
        for number in range(1, rounds + 1):
            slow = 1.5 if noise and rng.random() < 0.1 else 1.0
            for policy in policies:
                decision = (decision_ms or {}).get(policy, 0.0)
                experts = kept(policy, batch)
                ms = (step(batch, experts) + decision) * slow * max(0.5, rng.gauss(1, noise))
                numbers = {"tpot_ms": ms, "before": own(batch), "after": experts, "decision_ms": decision}
                found.append({"batch": batch, "round": number, "policy": policy, **numbers})
    return found
