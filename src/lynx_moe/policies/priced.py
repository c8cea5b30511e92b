"""Experts that are worth loading: this project's own policy.

Outputs of different experts are nearly orthogonal, so what a row's output misses is, squared, a sum over the experts
that the row lost. KL from the exact model follows that sum while it is small, and grows much faster beyond a few per
cent:

    v[t,e]  = (g[e] w[t,e] / sum_e w[t,e])^2     w: the row's own weights
    x[t]    = sum of v[t,e] over the row's lost experts
    harm    = sum_t  x[t] + STEEP x[t]^3

With slope=N outputs that weigh more are taken to be larger: v is multiplied by (K w[t,e] / sum_e w[t,e])^N. With
ends=true layers at the ends of the model ask a part of the price (`contract/depth.py`).

g is 1, or by calibration (`contract/gains.py`): what goes with an expert's mean output norm, or, with sensitive=true,
with what its loss was measured to cost; then layers ask a part of the price by what theirs cost.

An expert goes while the sum over the rows of what losing it adds to their harm, each divided by the row's price, is at
most what loading it costs: 1, or less where the engine says that it is in memory (`Rows.load_cost_E`).

The cube makes rows share the loss: one that has lost something already makes its other experts dear. Decided in passes
at rising shares of the price, each knowing what the ones before it took. That stands for taking the cheapest
expert again and again, and chooses as well.

Where prices differ, both sides are multiplied by m, the middle price of the voters (of an even number the upper one),
and what a row has lost so far is taken from a decision in which every row asks m:

    sum_t  added[t,e] m / price[t]  <=  share m cost[e]

At one price every factor is exactly 1 and the two decisions are one: bit for bit what the price alone decides. As long
as m stays where it is, a row that asks less changes nothing that anybody has lost: its experts become dearer in every
pass and all others stay as dear, so neither it nor a neighbour loses more. So it is for a row below m, and where all
have asked one price. Were losses taken from the mixed decision itself, even these would lose more at times: what a row
keeps now spares a neighbour a loss, and the neighbour lets go of what they share. Where m moves down with the row, it
may happen still: everybody is then taken to have lost less.

A row that verifies a drafted token may be wasted. Its harm is multiplied by the chance that the token is committed
(`Rows.chance`): what matters is the harm to expect.

A row alone has nobody to share an expert with, so at the same price it would lose more than rows of a batch do: it asks
ALONE times its price.

With reroute=R a row that lost experts takes in their place, in its own order, experts that stay and that it had not
chosen: slots which are there anyway, and no load. A stand-in weighs R times what the router gives it, its score over
the sum of the row's own scores, times the row's total. R = 0 drops.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.kernels import fused, gpu
from lynx_moe.policies.contract.amounts import check_kept, more_kept
from lynx_moe.policies.contract.calibrated import Calibrated
from lynx_moe.policies.contract.depth import Deep
from lynx_moe.policies.contract.fillers import EMPTY
from lynx_moe.policies.contract.forms import unless_same
from lynx_moe.policies.contract.gains import of_norms, of_sensitivities
from lynx_moe.policies.contract.keeping import Keeping
from lynx_moe.policies.contract.ranked import Ranked
from lynx_moe.policies.contract.stand_ins import stand_ins
from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.contract.weights import OF_SLOTS, by_norm, own_power
from lynx_moe.routing import RouterSpec, Routing, Rows, places, select

PRICE = 0.03
STEEP = 1000.0
LEAST_PRICE = 0.004  # a guard that finds this too dear gives the policy up
ROUNDS = (0.125, 0.25, 0.5, 1.0)  # each twice the one before it, which the GPU kernels rely on
ALONE = 0.0625  # a power of two: prices are multiplied by it without rounding
MOST = 1e30  # as good as any price above: no harm is that large, and float32 holds it


@dataclass(frozen=True, kw_only=True)
class Priced(Deep, Ranked, Calibrated, Keeping):
    """price: harm that a load must prevent: 0 keeps all, 0.01 is careful, 0.1 fast; 0.03 if left out. The harm is an
    estimate per layer: what a price costs differs between models, so measure yours. More rows, surer
    routers and experts that many rows share keep more by themselves. num_keep instead: the harm is made least for so
    many experts. Rows do without what went; the weight of their other experts grows a little
    (norm=own=0.3). A row that would lose everything keeps its heaviest expert.

    reroute: the weight of experts that stand in for lost ones, as a share of what the router gives them: 0 drops, 1 is
    natural.
    slope: how much larger outputs are that weigh more, see the module: 0, 1 or 2.
    data: a calibration, for the experts' output norms, which differ up to thirtyfold within a layer.
    sensitive: by what losses cost instead, layers' too; a calibration made with --sensitivity has it.
    per_rank: the price is for a level over the ranks (docs/reference/policies.md, ranks). With it, and with num_keep,
    what a load costs makes no difference.

    Hurts where outputs of experts are alike: the sum over lost experts then says too little.
    """

    name: ClassVar[str] = "priced"
    summary: ClassVar[str] = "experts whose loss would add more harm than `price`; others are dropped"
    source: ClassVar[str] = "lynx-moe"
    drops_slots: ClassVar[bool] = True
    acts_alone: ClassVar[bool] = True
    knows_prices: ClassVar[bool] = True
    own_only: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = OF_SLOTS
    tensors: ClassVar[tuple[str, ...]] = ("output_norm",)
    optional: ClassVar[bool] = True
    kernel_norm: ClassVar[str] = "own"
    price: float | None = None
    num_keep: int | None = None
    reroute: float = 0.0
    slope: int = 0
    sensitive: bool = False
    norm: str = "own=0.3"
    gain_E: Tensor | None = field(default=None, compare=False, repr=False)  # float64: g of every expert, None: 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.price is not None and self.num_keep is not None:
            raise ValueError(f"{self.spec}: give price=VALUE or num_keep=VALUE, not both")
        if self.price is not None and not 0 <= self.price < float("inf"):
            raise ValueError(f"priced: price={self.price:g} must be 0 or more, and finite; 0.01 is careful, 0.1 fast")
        if self.slope not in (0, 1, 2):
            raise ValueError(f"priced: slope={self.slope} must be 0, 1 or 2")
        if not 0 <= self.reroute <= 1:
            raise ValueError(f"priced: reroute={self.reroute:g} must lie between 0 and 1")
        if self.sensitive and self.ends:
            raise ValueError("priced: ends=true and sensitive=true both say what layers ask; leave one out")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("sensitivity", "load") if self.sensitive else self.tensors

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        if self.sensitive and self.calibration is None and self.data is None:
            raise ValueError(f"{self.spec} needs data=FILE, which `lynx-moe calibrate --sensitivity 32` makes")
        if self.num_keep is not None:
            check_kept(self.name, "num_keep", self.num_keep, spec, least=1)

    def for_layer(self, layer: int, artifact: Mapping[int, Mapping[str, Tensor]]) -> Self:
        policy = super().for_layer(layer, artifact)
        if not self.sensitive:
            return replace(policy, gain_E=of_norms(policy.tensor("output_norm")))
        gain_E, part = of_sensitivities(layer, artifact)
        return replace(policy, gain_E=gain_E, part=part)

    @property
    def asks(self) -> float:
        """The price; 1 with num_keep, which knows none."""
        return 1.0 if self.num_keep is not None else PRICE if self.price is None else min(self.price, MOST)

    def without_price(self) -> Self:
        return replace(self, price=None)

    def at_price(self, price: float) -> Self:
        return replace(self, price=price) if self.num_keep is None else self

    def milder(self, spec: RouterSpec) -> Self | None:
        if self.num_keep is None:
            return None if self.asks < LEAST_PRICE else replace(self, price=self.asks / 4)
        more = more_kept(self.num_keep, spec)
        return None if more is None else replace(self, num_keep=more)

    def decide(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        plain = self.num_keep is None and self.norm.startswith("own")
        if not plain or self.spreads or self.reroute or gpu.fits(logits_TE) or not fused.fits(logits_TE):
            return super().decide(logits_TE, spec, rows, own)
        knobs = (self.asks, own_power(self.norm), STEEP, ROUNDS[0], ALONE, MOST, self.slope, self.part)
        return fused.priced(logits_TE, rows, own or select(logits_TE, spec), self.gain_E, knobs)

    def without_kernel(self, spec: RouterSpec) -> str | None:
        return f"{self.spec}: the kernels know reroute=0 only" if self.reroute else super().without_kernel(spec)

    def vote(self, spec: RouterSpec) -> gpu.Vote:
        rule, number, power = "harm" if self.num_keep else "price", self.num_keep or 0, own_power(self.norm)
        knobs = {"price": self.asks, "part": self.part, "alone": ALONE, "steep": STEEP}
        knobs |= {"passes": len(ROUNDS), "slope": self.slope}
        return gpu.Vote(rule=rule, number=number, power=power, given_E=self.gain_E, **knobs)  # type: ignore[arg-type]

    def propose(self, step: Step) -> Routing:
        ids_TK, weights_TK = step.own.ids, step.own.weights
        stays_E = self.keep(step) | step.free_E
        live_TK = stays_E[ids_TK]
        candidate_TK = live_TK | ~live_TK.any(-1, keepdim=True)
        heaviest_T1 = weights_TK.where(candidate_TK, -torch.inf).amax(-1, keepdim=True)
        first_TK = candidate_TK & (weights_TK == heaviest_T1)
        first_T1 = ids_TK.where(first_TK, step.spec.num_experts - 1).amin(-1, keepdim=True)  # equal: lowest id
        live_TK = live_TK | (ids_TK == first_T1)
        new_TK, new_weights_TK = torch.where(live_TK, ids_TK, EMPTY), by_norm(self.norm, step, ids_TK, live_TK)
        if self.reroute:
            new_TK = stand_ins(step, stays_E, live_TK)
            natural_TK = by_norm("mass", step, new_TK.clamp(min=0), ~live_TK & (new_TK != EMPTY))
            new_weights_TK = new_weights_TK + self.reroute * natural_TK
        return unless_same(step, new_TK, new_weights_TK)

    def keep(self, step: Step) -> Tensor:
        """bool [E]: the experts whose loss would add more than the price, or the `num_keep` that would add most."""
        ids_TK, num_experts = step.own.ids, step.spec.num_experts
        value_TK, (price, factor_T1) = self.values(step), self.prices(step)
        stays_E = common_E = step.union(ids_TK)
        lost_T1 = value_TK.new_zeros(len(ids_TK), 1)

        def harm(added_TK: Tensor) -> Tensor:
            return value_TK.new_zeros(num_experts).scatter_add(0, ids_TK.flatten(), added_TK.flatten()).float()

        for share in ROUNDS:
            # (x + v)^3 - x^3, without the difference of near equals
            cube_TK = value_TK * (3 * lost_T1 * (lost_T1 + value_TK) + value_TK * value_TK)
            added_TK = value_TK + STEEP * cube_TK
            if step.chance_T is not None:
                added_TK = added_TK * step.chance_T.double()[:, None]
            harm_E = harm(added_TK)
            common_E = common_E & self._worth(harm_E, common_E, step, share, price)
            if factor_T1 is None:
                stays_E = common_E
            else:
                stays_E = stays_E & self._worth(harm(added_TK * factor_T1), stays_E, step, share, price)
            lost_T1 = value_TK.where(~(common_E | step.free_E)[ids_TK], 0.0).sum(-1, keepdim=True)
        if self.spreads and self.num_keep is not None:
            kept_E = stays_E | step.free_E
            return self.placement.spread(kept_E, step.free_E, kept_E | step.union(ids_TK), harm_E)
        return stays_E

    def _worth(self, harm_E: Tensor, stays_E: Tensor, step: Step, share: float, price: Tensor) -> Tensor:
        """bool [E]: what is kept of those that stayed so far, in a pass that goes `share` of the way."""
        if self.num_keep is not None:
            spare = (stays_E.sum() - self.num_keep).clamp(min=0)
            return places(harm_E, stays_E) < self.num_keep + ((1 - share) * spare).ceil()
        if self.spreads:
            return self.placement.worth(harm_E, stays_E, step.free_E, share * price)
        bound = share * price
        return harm_E > (bound if step.load_cost_E is None else bound * step.load_cost_E)

    def prices(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """(float32 [1]: the voters' middle price m; float64 [T, 1]: m over each row's own, None where all ask m)."""
        asked = None if self.num_keep is not None else step.middle_price(MOST)
        own = torch.full((1,), self.asks, dtype=torch.float32, device=step.voters_T.device)
        price, factor_T1 = asked or (own, None)
        price = self.part * price
        return torch.where(step.alone(), ALONE * price, price), factor_T1

    def values(self, step: Step) -> Tensor:
        """float64 [T, K]: v of every slot; 0 for rows that do not vote."""
        share_TK = step.own.weights.double()
        share_TK = share_TK / share_TK.sum(-1, keepdim=True).clamp(min=1e-20)
        norm_TK = share_TK if self.gain_E is None else share_TK * self.gain_E[step.own.ids]
        value_TK = norm_TK.square()
        for _ in range(self.slope):
            value_TK = value_TK * (step.spec.top_k * share_TK)
        return value_TK.where(step.voters_T[:, None], 0.0)
