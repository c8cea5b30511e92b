"""XShare: the experts with the largest share of the batch's scores (arXiv 2602.07265)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.kernels.gpu import Vote
from lynx_moe.policies.contract.amounts import check_kept, check_rank, check_rank_fits, check_share, resolve
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.published.spread import Spread
from lynx_moe.routing import RouterSpec, places, scores


@dataclass(frozen=True, kw_only=True)
class XShare(Spread):
    """The batch keeps every voter's first k0 experts, then those with the largest u until there are `budget`.

        u[e] = sum_t p[t,e]        p: the router's scores of all experts, not of a row's top-k alone

    budget: a number of experts, or alpha: a share of all of them, rounded down. A sum of scores is modular, so taking
    the largest first is the best set of that size. If the first k0 alone are more than the budget, all of them stay.

    The paper maximises the total gating score of the chosen set; the knobs are those of vLLM pull request 35551
    (expert_budget, budget_alpha, top_per_token), whose gates by the number of rows are left out: here rows say whether
    they decode. Scores carry no selection bias, and experts outside a row's groups get none of its score.
    per_rank: the first k0 stay; of the rest, ranks keep equally many, together at least `budget`.
    Hurts where the rows have little in common: the budget does not ask what a row loses.
    """

    name: ClassVar[str] = "xshare"
    summary: ClassVar[str] = "everybody's first k0, then the largest sums of scores"
    source: ClassVar[str] = "XShare, arXiv 2602.07265"
    one_of: ClassVar[tuple[str, ...]] = ("budget", "alpha")
    budget: int | None = None
    alpha: float | None = None
    k0: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "alpha", self.alpha)
        check_rank(self.name, "k0", self.k0, least=0)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "k0", self.k0, spec)
        knob = "budget" if self.alpha is None else "alpha"
        check_kept(self.name, knob, resolve(self.budget, self.alpha, spec), spec)

    def vote(self, spec: RouterSpec) -> Vote:
        return Vote(rule="scores", number=resolve(self.budget, self.alpha, spec), pinned=self.k0)

    def keep(self, step: Step) -> Tensor:
        score_TE = scores(step.logits_TE, step.spec)
        if step.allowed_TE is not None:
            score_TE = score_TE.where(step.allowed_TE, 0.0)
        pinned_E = self.pinned(step)
        place_E = places(step.total(score_TE), pinned_E)
        return pinned_E | (place_E < resolve(self.budget, self.alpha, step.spec))

    def pinned(self, step: Step) -> Tensor:
        return step.union(step.best(self.k0))
