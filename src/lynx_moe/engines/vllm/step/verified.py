"""What became of drafts: how many tokens were committed, by depth, and the chance that the next ones are.

Whether a token was accepted is first known where vLLM's scheduler takes up what a step has sampled. From there it
travels with the next step's plan to every worker, so all of them, and all pipeline stages, weigh rows alike, and no
device is waited for.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lynx_moe.engines.shared.step.rows import CERTAIN
from lynx_moe.engines.shared.step.verified import VerifiedRows
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.shadows import sample as shadows

TOLD = "lynx_moe_verified"  # attribute of vLLM's Scheduler and SchedulerOutput: [(drafted tokens, accepted ones), ...]
PRIOR, WEIGHT = 0.7, 8.0  # what is taken for granted before drafts were seen: the chance of a token, and for how many
WINDOW = 512  # drafts that the running acceptance remembers
DEPTHS = 8  # that are told one by one


def seen(original: Any, scheduler: Any, *args: Any, **given: Any) -> Any:
    """Around Scheduler.make_spec_decoding_stats, which is called for each draft that was verified."""
    names = ("spec_decoding_stats", "num_draft_tokens", "num_accepted_tokens", "num_invalid_spec_tokens", "request_id")
    told = {**dict(zip(names, args, strict=False)), **given}
    drafted = told["num_draft_tokens"] - (told.get("num_invalid_spec_tokens") or {}).get(told.get("request_id"), 0)
    if drafted > 0 and Options.of(scheduler.vllm_config) is not None:
        scheduler.__dict__.setdefault(TOLD, []).append((drafted, min(told["num_accepted_tokens"], drafted)))
    return original(scheduler, *args, **given)


def hand_over(original: Any, scheduler: Any, *args: Any, **given: Any) -> Any:
    """Around Scheduler.schedule: the step's plan takes along what became of the drafts before it, what shadow steps
    have measured, and how long steps took."""
    output = original(scheduler, *args, **given)
    for name in (TOLD, shadows.TOLD, shadows.TIMES):
        if name in scheduler.__dict__:
            setattr(output, name, scheduler.__dict__.pop(name))
    return output


class Verified(VerifiedRows):
    """Of one server. num_drafts: the most tokens that a draft has, D; 0: nothing is ever drafted."""

    def __init__(self, num_drafts: int) -> None:
        self.num_drafts = num_drafts
        self.tried, self.kept = np.full(num_drafts, WEIGHT), np.full(num_drafts, WEIGHT * PRIOR)  # running, by depth
        super().__init__()

    def reset(self) -> None:
        """The sums; what was learnt of the chances stays."""
        super().reset()
        self.drafts = 0
        self.drafted, self.accepted = np.zeros(self.num_drafts, dtype=int), np.zeros(self.num_drafts, dtype=int)

    def add(self, scheduler_output: Any) -> None:
        """Takes up what `hand_over` gave along."""
        outcomes: Iterable[tuple[int, int]] = getattr(scheduler_output, TOLD, ())
        for drafted, accepted in outcomes:
            drafted, accepted = min(drafted, self.num_drafts), min(accepted, self.num_drafts)
            reached = min(drafted, accepted + 1)  # a token is tried where all before it were accepted
            self.drafts += 1
            self.drafted[:drafted] += 1
            self.accepted[:accepted] += 1
            self.tried *= 1 - 1 / WINDOW
            self.kept *= 1 - 1 / WINDOW
            self.tried[:reached] += 1
            self.kept[:accepted] += 1

    @property
    def chances(self) -> np.ndarray:
        """float32 [1 + D]: of a row at each depth, that its token is committed; 1 at depth 0, and never rising."""
        if not self.num_drafts:
            return CERTAIN
        share = (self.kept / self.tried.clip(1e-9)).clip(1e-3, 1.0)
        return np.concatenate(([1.0], share)).cumprod().clip(1e-3).astype(np.float32)

    def told(self) -> dict[str, Any]:
        """The sums in plain numbers, depths from 1 on; accepted_length: committed tokens a verification, mean."""
        length = 1 + self.accepted.sum() / self.drafts if self.drafts else None
        return {
            **super().told(),
            "drafts": self.drafts,
            "drafted": self.drafted.tolist(),
            "accepted": self.accepted.tolist(),
            "accepted_length": None if length is None else float(length),
        }
