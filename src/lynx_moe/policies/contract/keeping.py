"""Policies by which some experts stay for a whole step, and how a GPU is told which: a rule that its kernels know."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lynx_moe.kernels import gpu
from lynx_moe.policies.contract.policy import Policy
from lynx_moe.policies.contract.step import Step, make_step
from lynx_moe.policies.contract.weights import BY_RULE, check_norm, check_norm_fits
from lynx_moe.routing import RouterSpec, Routing, Rows, select


@dataclass(frozen=True, kw_only=True)
class Reweighing(Policy):
    """norm: how the experts of changed rows are weighed (`weights.py`)."""

    norms: ClassVar[tuple[str, ...]] = BY_RULE
    norm: str = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm(self.name, self.norm, self.norms)

    def check(self, spec: RouterSpec) -> None:
        super().check(spec)
        check_norm_fits(self.name, self.norm, spec)


@dataclass(frozen=True, kw_only=True)
class Keeping(Reweighing):
    """kernel_norm: the norm that the GPU kernels know for what its rows do with the experts that stay: "model" where
    they choose anew, "own" where they do without the others."""

    kernel_norm: ClassVar[str] = "model"

    def keep(self, step: Step) -> Tensor:
        """bool [E]: the experts that stay. Donated ones (`step.free_E`) are added."""
        raise NotImplementedError(f"{self.name} must define keep()")

    def vote(self, spec: RouterSpec) -> gpu.Vote | None:
        """What the GPU kernels are told instead of calling `keep`; None: nothing, so `keep` says it to them."""
        return None

    def without_kernel(self, spec: RouterSpec) -> str | None:
        if self.norm.partition("=")[0] != self.kernel_norm or not self.guarded:
            return f"{self.spec}: the kernels know norm={self.kernel_norm} only, and guard each step"
        return gpu.obstacle(spec, weighs=self.kernel_norm == "model")

    def decide(
        self, logits_TE: Tensor, spec: RouterSpec, rows: Rows | None = None, own: Routing | None = None
    ) -> Routing:
        if self.without_kernel(spec) or not gpu.fits(logits_TE):
            return self.route(logits_TE, spec, rows, own)
        self.check(spec)
        own, vote = own or select(logits_TE, spec), self.vote(spec)
        if vote is None:
            step = make_step(logits_TE.float(), spec, rows, Routing(own.ids.long(), own.weights.float()))
            vote = gpu.Vote(rule="given", given_E=self.keep(step))
        return gpu.decide(logits_TE, spec, rows, own, vote)
