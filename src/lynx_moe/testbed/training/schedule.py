"""The learning rate over a run: warm-up, flat, a linear end that may be moved while the run goes on."""

import json
from dataclasses import dataclass
from pathlib import Path

from lynx_moe.testbed.model.families import Family

WARMUP_STEPS, FINAL_RATE = 40, 0.02
PLAN = "plan.json"


@dataclass(frozen=True)
class Schedule:
    """The rate falls linearly from step `decay_from` on and ends at `FINAL_RATE` of its peak, at step `num_steps`."""

    decay_from: float
    num_steps: int

    @classmethod
    def of(cls, family: Family) -> "Schedule":
        """What the family's row says."""
        return cls(family.flat_until * family.num_steps, family.num_steps)

    def rate(self, step: int) -> float:
        """Learning rate of `step` as a share of its peak."""
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        if step < self.decay_from:
            return 1.0
        return 1 - (1 - FINAL_RATE) * (step - self.decay_from) / (self.num_steps - self.decay_from)


def planned(family: Family, work: Path, step: int) -> Schedule:
    """The schedule of the run in `work`, which has reached `step`: the family's, or what `finish` asked for since.

    The first call after `finish` settles, in the file, that the decay begins at `step`: a run that is stopped and
    continued keeps to that.
    """
    file = work / PLAN
    if not file.is_file():
        return Schedule.of(family)
    plan = json.loads(file.read_text(encoding="utf-8"))
    if "decay_from" not in plan:
        plan |= {"decay_from": step, "num_steps": step + plan["decay_steps"]}
        _write(file, plan)
    return Schedule(plan["decay_from"], plan["num_steps"])


def finish(work: Path, decay_steps: int) -> None:
    """Ask the run in `work`, going on or stopped, to end after `decay_steps` steps more, of a falling rate.

    Raises ValueError if there is nothing to end: no step was saved, or a number under 1.
    """
    if decay_steps < 1:
        raise ValueError(f"{decay_steps} steps cannot end a run: give 1 or more")
    if not (work / "checkpoint.pt").is_file():
        raise ValueError(f"no run in {work} to end: it has no checkpoint.pt yet")
    _write(work / PLAN, {"decay_steps": decay_steps})


def _write(file: Path, plan: dict[str, int]) -> None:
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(plan) + "\n", encoding="utf-8")
    partial.replace(file)
