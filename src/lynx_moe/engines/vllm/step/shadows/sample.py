"""What a shadow step has measured, and its way to every worker.

Only the last pipeline stage has logits, and its first rank speaks for it. What it measures goes to vLLM's scheduler
with the sampled tokens, and from there with the next step's plan to all workers: whatever follows from it happens at
the same step on every rank and stage.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from lynx_moe.control.loss import compare
from lynx_moe.control.sampling import bucket, in_order

# Attributes of vLLM's ModelRunnerOutput, Scheduler and SchedulerOutput: lists of Sample, and of Timed (`pace.py`).
TOLD, TIMES = "lynx_moe_shadows", "lynx_moe_times"
SERVER, REQUEST = "server", "request"  # whose policy a row follows


def heard(original: Any, scheduler: Any, scheduler_output: Any, model_runner_output: Any, *args: Any) -> Any:
    """Around Scheduler.update_from_output: what a worker has measured waits for the next plan."""
    for name in (TOLD, TIMES):
        told = model_runner_output.__dict__.pop(name, None)
        if told:
            scheduler.__dict__.setdefault(name, []).extend(told)
    return original(scheduler, scheduler_output, model_runner_output, *args)


class Effect(NamedTuple):
    """Sums over rows: KL(exact || policy) in nats, rows that rank the same token first, and how much more probable the
    policy makes the token that it ranks first (a difference of log-probabilities)."""

    rows: float = 0.0
    kl: float = 0.0
    agree: float = 0.0
    change: float = 0.0

    @property
    def summary(self) -> dict[str, float]:
        """The KL as Prometheus has it."""
        return {"count": self.rows, "sum": self.kl}

    def plus(self, other: Self) -> "Effect":
        return Effect(*(mine + its for mine, its in zip(self, other, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One shadow step. batch: its rows that may be remapped. at: what stood when it ran, as who asked for the trial
    knows it. server: rows that follow the server's policy; request: those that bring their own; above: the former
    again, in a trial of another setting. seconds: what it cost the host. passes: seconds of the exact forward pass and
    of the one that stayed; None where the host does not wait for them. exact: rows of the server's policy asked
    nothing, so that only the trial tells of them."""

    batch: int
    at: Any
    server: Effect
    request: Effect
    above: Effect | None
    seconds: float
    passes: tuple[float, float] | None = None
    exact: bool = False


def effects(truth_NV: Tensor, policy_NV: Tensor, *rows: Tensor) -> Tensor:
    """float64 [masks, 4]: an `Effect` for each mask bool [N], from logits. Rows without a distribution (NaN) are in
    none."""
    truth, policy = (logits.float().log_softmax(-1) for logits in (truth_NV, policy_NV))
    kl, agree, change, _ = compare(truth, policy, policy.argmax(-1))
    found = torch.stack((torch.ones_like(kl), kl.clamp(min=0.0), agree, change), -1).double()
    known = found.isfinite().all(-1)
    return torch.stack([found.where((mask & known)[:, None], 0.0).sum(0) for mask in rows])


class Sums:
    """All samples so far: effects by bucket of batch sizes and by whose policy, steps, seconds."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self.effects: dict[tuple[str, str], Effect] = {}

    def add(self, sample: Sample) -> None:
        self.steps += 1
        self.seconds += sample.seconds
        for whose, effect in ((SERVER, sample.server), (REQUEST, sample.request)):
            if effect.rows and not (sample.exact and whose == SERVER):
                place = bucket(sample.batch), whose
                self.effects[place] = self.effects.get(place, Effect()).plus(effect)

    def told(self) -> dict[str, Any]:
        """In plain numbers: by bucket and whose policy, the rows and the means."""
        order = in_order(list(dict.fromkeys(batch for batch, _ in self.effects)))
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "batches": [
                {"batch": batch, "policy": whose, "rows": int(one.rows), **_means(one)}
                for batch in order
                for (name, whose), one in sorted(self.effects.items())
                if name == batch
            ],
        }


def _means(effect: Effect) -> dict[str, float]:
    return {name: getattr(effect, name) / effect.rows for name in ("kl", "agree", "change")}
