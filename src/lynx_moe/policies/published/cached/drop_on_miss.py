"""MoE-Infinity's rule for experts that a cache does not hold (issue 234 of its repository)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_rank, check_rank_fits, check_share
from lynx_moe.policies.contract.forms import Dropping
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec

EVEN = 0.5


@dataclass(frozen=True, kw_only=True)
class DropOnMiss(Dropping):
    """A row whose least weight is above half its largest stays; of others the lightest slots that are not in memory go,
    one after another, while the share of weight that went is at most `mass` and more than min_k stay. What is left is
    scaled to the row's own total (norm=own=1).

    Hurts where rows are uneven and little is in memory: then it is a cut by weight, and what one row drops another
    loads.
    """

    name: ClassVar[str] = "drop-on-miss"
    summary: ClassVar[str] = "a row's lightest experts go if they are not in memory, up to a share of its weight"
    source: ClassVar[str] = "MoE-Infinity, issue 234"
    needs_residency: ClassVar[bool] = True
    mass: float = 0.1
    min_k: int = 1
    norm: str = "own=1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "mass", self.mass)
        check_rank(self.name, "min_k", self.min_k)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_rank_fits(self.name, "min_k", self.min_k, spec)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        assert step.load_cost_E is not None
        weights_TK = step.own.weights.double()
        total_T1 = weights_TK.sum(-1, keepdim=True).clamp(min=1e-20)
        uneven_T1 = weights_TK.amin(-1, keepdim=True) <= EVEN * weights_TK.amax(-1, keepdim=True)
        order_TK = weights_TK.argsort(dim=-1, stable=True)
        missed_TK = (step.load_cost_E >= 1)[step.own.ids.gather(-1, order_TK)] & uneven_T1
        gone_TK = (weights_TK.gather(-1, order_TK) * missed_TK).cumsum(-1) / total_T1
        goes_TK = missed_TK & (gone_TK <= self.mass + 1e-9) & (missed_TK.cumsum(-1) <= step.spec.top_k - self.min_k)
        return (rank_TK >= 0).scatter(-1, order_TK, ~goes_TK)
