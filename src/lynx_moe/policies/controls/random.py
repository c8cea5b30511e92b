"""The control: a random set of experts. A policy that does not beat it has no content."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from lynx_moe.kernels.gpu import Vote
from lynx_moe.policies.contract.amounts import check_kept, more_kept
from lynx_moe.policies.contract.forms import Rerouting
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import RouterSpec

MIX = 0x2545F4914F6CDD1D  # xorshift64* multiplier


@dataclass(frozen=True, kw_only=True)
class Random(Rerouting):
    """num_keep of the experts that the step would load stay, drawn anew for every layer and step.

    The draw is a hash of the voters' own choices, so every tensor-parallel rank draws alike and the order of the rows
    does not matter; `seed` gives other draws.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "a random set of the same size (the control)"
    source: ClassVar[str] = "-"
    num_keep: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"random: seed={self.seed} must lie between 0 and 2**62")

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_kept(self.name, "num_keep", self.num_keep, spec)

    def milder(self, spec: RouterSpec) -> Self | None:
        more = more_kept(self.num_keep, spec)
        return None if more is None else replace(self, num_keep=more)

    def vote(self, spec: RouterSpec) -> Vote:
        return Vote(rule="drawn", number=self.num_keep, seed=self.seed)

    def keep(self, step: Step) -> Tensor:
        votes_E = step.votes()
        expert_E = torch.arange(1, len(votes_E) + 1, device=votes_E.device)
        draw_E = hashed(expert_E + hashed((votes_E * hashed(expert_E + self.seed)).sum()))
        draw_E = torch.where(votes_E > 0, draw_E, -1)
        return draw_E >= draw_E.topk(min(self.num_keep, len(draw_E))).values[-1]


def hashed(value: Tensor) -> Tensor:
    """Non-negative int64 of the same shape; integer arithmetic wraps alike on every device."""
    for _ in range(2):
        value = value * MIX
        value = value ^ (value >> 29)
    return value & 0x7FFFFFFFFFFFFFFF
