"""The model that drafts, where one does: the plan of its MoE layers, and the passes that it makes between two steps.

vLLM runs a drafter after each step of the target. Its first pass takes the rows of that step, and for each request a
fixed number more; every later pass takes one row a request. No mask of the target is of these rows, so a drafter's plan
has masks of its own, and counts by itself.

Shapes: R requests of a step.
"""

from typing import Any

import numpy as np

from lynx_moe.engines.shared.step.rows import EXACT_ROW, Asked
from lynx_moe.engines.vllm.step.plan import Plan


class DrafterPlan(Plan):
    """A plan that never becomes the process's active one: the target's leads to it. replayed: CUDA graphs hold whole
    passes, so nothing tells them apart, and none is counted."""

    drafts = True

    def __init__(self, *, replayed: bool = False, **given: Any) -> None:
        super().__init__(**given)
        self.replayed, self.has_begun = replayed, True
        self.passes = 0
        self.idle()

    def idle(self) -> None:
        """What comes next is none of a step's passes."""
        self.passes = -1
        self.rows.idle()
        self.begin_step()

    def follow(
        self, past_prompt_R: np.ndarray, scheduled_R: np.ndarray, drafts_R: np.ndarray, exact_R: np.ndarray, extra: int
    ) -> None:
        """The target begins a step of these requests (`StepRows.fill`); exact_R: bool, who asks to be exact. extra: how
        many more rows than the target's a request has in the drafter's first pass."""
        if self.replayed:
            return
        self.idle()
        self.drafting_R = past_prompt_R & (scheduled_R == 1 + drafts_R)
        self.counts_R = scheduled_R + extra
        self.choice_R = np.where(exact_R, EXACT_ROW, 0)
        self.passes = 0

    def begin_pass(self, num_tokens: int, *, real: bool) -> None:
        """A pass of num_tokens rows, padding included, comes; not real: a dummy run."""
        if self.replayed:
            return
        if not real or self.passes < 0:
            self.idle()
            return
        drafting_R, counts_R = self.drafting_R, self.counts_R
        if self.passes > 0:
            drafting_R, counts_R = np.ones_like(drafting_R), np.ones_like(counts_R)
        if num_tokens < counts_R.sum():  # rejected rows may have been taken out: which ones is not known here
            self.rows.idle()
        else:
            self.rows.fill(
                drafting_R, counts_R, self.choice_R, Asked(price=self.policy.asks, verify=True), counts_R - 1
            )
        self.begin_step()
        self.passes += 1
