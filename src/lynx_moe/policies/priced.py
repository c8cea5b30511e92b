"""Experts that are worth loading: this project's own policy.

Outputs of different experts are nearly orthogonal, so what a row's output misses is, squared, a sum over the experts
that the row lost. KL from the exact model follows that sum while it is small, and grows much faster beyond a few per
cent:

    v[t,e]  = (n[e] w[t,e] / sum_e w[t,e])^2     w: the row's own weights; n: 1, or calibrated output norms, rms 1
    x[t]    = sum of v[t,e] over the row's lost experts
    harm    = sum_t  x[t] + STEEP x[t]^3

An expert goes while losing it adds at most `price` to the harm. The cube makes rows share the loss: one that has lost
something already makes its other experts dear. Decided in passes at rising shares of the price, each knowing what the
ones before it took. That stands for taking the cheapest expert again and again, and chooses as well.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from lynx_moe.policies.amounts import check_kept, more_kept
from lynx_moe.policies.calibrated import Calibrated
from lynx_moe.policies.forms import Dropping
from lynx_moe.policies.step import Step
from lynx_moe.routing import RouterSpec, places

STEEP = 1000.0
LEAST_PRICE = 0.004  # a guard that finds this too dear gives the policy up
ROUNDS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Priced(Calibrated, Dropping):
    """price: harm that a load must prevent, the same on every model: 0 keeps all, 0.01 is careful, 0.1 fast. More rows,
    surer routers and experts that many rows share keep more by themselves. Or num_keep: the harm is made least for so
    many experts. Rows do without what went; their other weights stay (norm=mass).

    data: a calibration, for the experts' output norms, which differ up to thirtyfold within a layer.

    Hurts where outputs of experts are alike: the sum over lost experts then says too little.
    """

    name: ClassVar[str] = "priced"
    summary: ClassVar[str] = "experts whose loss would add more harm than `price`; others are dropped"
    source: ClassVar[str] = "lynx-moe"
    token_level: ClassVar[bool] = False
    one_of: ClassVar[tuple[str, ...]] = ("price", "num_keep")
    tensors: ClassVar[tuple[str, ...]] = ("output_norm",)
    optional: ClassVar[bool] = True
    price: float | None = None
    num_keep: int | None = None
    norm: str = "mass"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"priced: price={self.price:g} must be 0 or more, and finite; 0.01 is careful, 0.1 fast")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if self.num_keep is not None:
            check_kept(self.name, "num_keep", self.num_keep, spec, least=1)

    def milder(self, spec: RouterSpec) -> Self | None:
        if self.price is not None:
            return None if self.price < LEAST_PRICE else replace(self, price=self.price / 4)
        more = more_kept(self.num_keep or 1, spec)
        return None if more is None else replace(self, num_keep=more)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        live_TK = (self.keep(step) | step.free_E)[step.own.ids]
        return live_TK | (~live_TK.any(-1, keepdim=True) & (rank_TK == 0))

    def keep(self, step: Step) -> Tensor:
        """bool [E]: the experts whose loss would add more than `price`, or the `num_keep` that would add most."""
        ids_TK, num_experts = step.own.ids, step.spec.num_experts
        value_TK = self.values(step)
        stays_E = step.union(ids_TK)
        lost_T1 = value_TK.new_zeros(len(ids_TK), 1)
        for share in ROUNDS:
            # (x + v)^3 - x^3, without the difference of near equals
            added_TK = value_TK + STEEP * value_TK * (3 * lost_T1 * (lost_T1 + value_TK) + value_TK**2)
            harm_E = value_TK.new_zeros(num_experts).scatter_add(0, ids_TK.flatten(), added_TK.flatten()).float()
            stays_E = stays_E & self._worth(harm_E, stays_E, share)
            lost_T1 = value_TK.where(~(stays_E | step.free_E)[ids_TK], 0.0).sum(-1, keepdim=True)
        return stays_E

    def _worth(self, harm_E: Tensor, stays_E: Tensor, share: float) -> Tensor:
        """bool [E]: what is kept of those that stayed so far, in a pass that goes `share` of the way."""
        if self.num_keep is None:
            return harm_E > share * (self.price or 0.0)
        spare = (stays_E.sum() - self.num_keep).clamp(min=0)
        return places(harm_E, stays_E) < self.num_keep + ((1 - share) * spare).ceil()

    def values(self, step: Step) -> Tensor:
        """float64 [T, K]: v of every slot; 0 for rows that do not vote."""
        share_TK = step.own.weights.double() / step.own_mass().double().clamp(min=1e-20)
        if self.calibration is not None:
            norm_E = self.tensor("output_norm").double()
            share_TK = share_TK * (norm_E / norm_E.square().mean().sqrt().clamp(min=1e-20))[step.own.ids]
        return share_TK.square().where(step.voters_T[:, None], 0.0)
