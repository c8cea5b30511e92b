"""What the policy gains on a server's own steps: a shadow step runs the same inputs exactly and as decided, timed."""

import statistics
from typing import Any

from lynx_moe.control.sampling import bucket, in_order
from lynx_moe.engines.vllm.step.shadows.sample import Sample

ENOUGH = 16  # shadow steps of a batch bucket, of which the newest ones are kept
PAYS = 1.02  # times faster: less is nothing that an operator would see


class Gains:
    """Of one engine: seconds of the passes, exact and as decided, by bucket of batch sizes."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {}
        self.told: set[str] = set()

    def add(self, sample: Sample) -> str | None:
        """A line for the log, once for each bucket, when enough is known of it."""
        if sample.passes is None:
            return None
        batch = bucket(sample.batch)
        kept = self.seconds.setdefault(batch, [])
        kept.append(sample.passes)
        del kept[:-ENOUGH]
        if len(kept) < ENOUGH or batch in self.told:
            return None
        self.told.add(batch)
        one = self._of(batch)
        pays = "" if one["ratio"] >= PAYS else "; it does not pay there, and act_from, act_to leave such steps exact"
        return (
            f"lynx_moe: steps of {batch} rows take {one['ms']:.1f} ms by the policy, {one['exact_ms']:.1f} ms exactly "
            f"({one['ratio']:.2f} times, {ENOUGH} shadow steps){pays}"
        )

    def state(self) -> list[dict[str, Any]]:
        """In plain numbers: milliseconds of a forward pass by the policy and exactly, and how many times shorter it is;
        medians of the newest shadow steps."""
        return [{"batch": batch, **self._of(batch)} for batch in in_order(list(self.seconds))]

    def _of(self, batch: str) -> dict[str, Any]:
        kept = self.seconds[batch]
        return {
            "steps": len(kept),
            "ms": 1e3 * statistics.median(policy for _, policy in kept),
            "exact_ms": 1e3 * statistics.median(exact for exact, _ in kept),
            "ratio": statistics.median(exact / policy for exact, policy in kept),
        }
