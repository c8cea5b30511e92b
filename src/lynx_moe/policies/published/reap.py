"""REAP: static pruning by router-weighted expert activation (arXiv 2510.13999)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.policies.contract.amounts import check_kept, check_share, resolve
from lynx_moe.policies.contract.calibrated import Calibrated
from lynx_moe.policies.contract.forms import Rerouting
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec, places


@dataclass(frozen=True, kw_only=True)
class Reap(Calibrated, Rerouting):
    """The experts with the largest mean of gate weight x output norm stay, in every step the same ones.

    num_keep: how many stay, or share: which share of all, rounded down (REAP at 25 % compression is share=0.75).

    Published as pruning for good. Here the other experts still exist, and the contract holds: prompts and exact rows
    use them, a row alone does, and so does a step that would load more experts after pruning. What is measured is thus
    the pruned set in decode steps, at its best. Keeps 96-97 % at share=0.5 on the domain of its data, 22 % elsewhere.
    """

    name: ClassVar[str] = "reap"
    summary: ClassVar[str] = "a fixed set: the largest mean gate x output norm"
    source: ClassVar[str] = "REAP, arXiv 2510.13999"
    one_of: ClassVar[tuple[str, ...]] = ("share", "num_keep")
    tensors: ClassVar[tuple[str, ...]] = ("gate_norm",)
    share: float | None = None
    num_keep: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.name, "share", self.share)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        knob = "num_keep" if self.share is None else "share"
        check_kept(self.name, knob, resolve(self.num_keep, self.share, spec), spec)

    def keep(self, step: Step) -> Tensor:
        return places(self.tensor("gate_norm")) < resolve(self.num_keep, self.share, step.spec)
