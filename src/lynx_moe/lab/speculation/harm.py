"""What a policy does to next-token distributions while an engine serves: the shadow steps of a block, one by one."""

from typing import Any, Self

from lynx_moe.engines.vllm.step.shadows.sample import TOLD, Effect
from lynx_moe.lab.shared.intervals import weighted_mean


class Harm:
    """A block in which the samples of a plan's shadow steps are kept. scheduler: vLLM's, of the same process, where the
    last sample waits for a step to come."""

    def __init__(self, plan: Any, scheduler: Any) -> None:
        self.plan, self.scheduler = plan, scheduler
        self.effects: list[Effect] = []

    def __enter__(self) -> Self:
        self.scheduler.__dict__.pop(TOLD, None)  # of what was served before
        self.plan.hear = self._hear  # on the plan itself, before the class's
        return self

    def __exit__(self, *_: object) -> None:
        del self.plan.hear
        self._keep(self.scheduler.__dict__.pop(TOLD, ()))

    def _hear(self, scheduler_output: Any) -> None:
        self._keep(getattr(scheduler_output, TOLD, ()))
        type(self.plan).hear(self.plan, scheduler_output)

    def _keep(self, samples: Any) -> None:
        self.effects += [sample.server for sample in samples if sample.server.rows]


def line(effects: list[Effect]) -> dict[str, Any]:
    """Rows that were compared, in how many steps; the mean KL(exact || policy) of a row in nats and the share of rows
    that rank the same token first, with 95 % intervals over steps; None where no row could be remapped."""
    rows = [one.rows for one in effects]
    found: dict[str, Any] = {"steps": len(effects), "rows": int(sum(rows))}
    for name in ("kl", "agree"):
        means = [getattr(one, name) / one.rows for one in effects]
        found[name] = sum(getattr(one, name) for one in effects) / sum(rows) if rows else None
        found[f"{name}_interval"] = weighted_mean(means, rows) if len(rows) > 1 else None
    return found
