"""Dynamic expert skipping of NAEE ("Not All Experts are Equal", arXiv 2402.14800)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_share
from lynx_moe.policies.contract.forms import Dropping
from lynx_moe.policies.contract.step import Step


@dataclass(frozen=True, kw_only=True)
class Naee(Dropping):
    """A row drops the experts that weigh less than beta times its first one: w[i] < beta * w[0].

    Published for top-2, where i = 1, with beta the median of w[1] / w[0] on calibration data, one per layer. Taken here
    for every rank i > 0, which is the same rule for k = 2, and with one beta for all layers. With a selection bias the
    first expert is the first of the ranking; an expert below it that weighs more always stays.
    Saves computation rather than loading: an expert that one row drops, another one keeps.
    """

    name: ClassVar[str] = "naee"
    summary: ClassVar[str] = "a row's experts that weigh beta of its first"
    source: ClassVar[str] = "NAEE, arXiv 2402.14800"
    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "beta", self.beta)

    def live(self, step: Step, rank_TK: Tensor) -> Tensor:
        weight_TK = step.own.weights
        return (rank_TK == 0) | (weight_TK >= self.beta * step.first(weight_TK))
