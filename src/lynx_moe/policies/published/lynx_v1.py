"""The two policies of the first version of Lynx (arXiv 2411.08982, v1)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lynx_moe.kernels.gpu import Vote
from lynx_moe.policies.contract.amounts import check_kept
from lynx_moe.policies.contract.forms import Rerouting
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, places, scores

MODES = ("popularity", "confidence")


@dataclass(frozen=True, kw_only=True)
class LynxV1(Rerouting):
    """mode=popularity: the num_keep experts with the most votes stay (a vote: the expert is in a row's top-k; equal
    votes: lowest id). num_keep left open: half of what the step would load, rounded up, but at least k.

    mode=confidence: a row's confidence is (upper - lower) / upper: the score mass of the upper half of its top-k
    against the lower half's. Rows above `threshold` pin their upper half (of an odd k: the larger half), and everybody
    selects again among the pinned experts. Where fewer than k experts are pinned, the step keeps the model's routing.
    """

    name: ClassVar[str] = "lynx-v1"
    summary: ClassVar[str] = "most voted experts, or those pinned by confident tokens"
    source: ClassVar[str] = "Lynx v1, arXiv 2411.08982v1"
    mode: str = "popularity"
    num_keep: int | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"lynx-v1: mode={self.mode} is unknown; allowed: {', '.join(MODES)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"lynx-v1: threshold={self.threshold:g} must lie between 0 and 1")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if self.num_keep is not None:
            check_kept(self.name, "num_keep", self.num_keep, spec)

    def vote(self, spec: RouterSpec) -> Vote | None:
        return Vote(rule="popular", number=self.num_keep or 0) if self.mode == "popularity" else None

    def keep(self, step: Step) -> Tensor:
        return self._popular(step) if self.mode == "popularity" else self._pinned(step)

    def _popular(self, step: Step) -> Tensor:
        votes_E = step.votes()
        half = ((votes_E > 0).sum() + 1) // 2
        num_keep = half.clamp(min=step.spec.top_k) if self.num_keep is None else self.num_keep
        return places(votes_E) < num_keep

    def _pinned(self, step: Step) -> Tensor:
        top_k = step.spec.top_k
        upper = (top_k + 1) // 2
        best_TK = step.best(top_k)
        mass_TK = scores(step.logits_TE, step.spec).gather(-1, best_TK)
        upper_T, lower_T = mass_TK[:, :upper].sum(-1), mass_TK[:, upper:].sum(-1)
        sure_T = (upper_T - lower_T) > self.threshold * upper_T
        pinned_E = step.union(torch.where(sure_T[:, None], best_TK[:, :upper], step.spec.num_experts))
        return pinned_E | (pinned_E.sum() < top_k)
