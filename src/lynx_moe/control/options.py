"""What an operator may ask of a quality guard, and the ladder that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from lynx_moe.policies import Policy, make_policy
from lynx_moe.routing import RouterSpec

SHORT = 4  # a window is `window` samples for the mass, and a quarter of them for figures of the rarer shadow steps


def is_number(value: Any) -> bool:
    """Whether JSON gave a number: true and false, which Python takes for 1 and 0, are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """max_mass_lost, max_error, max_kl: the operator's bounds on the three figures; at least one is given.
    steps, layers: share of the steps that a policy acts on, and of their layers, where the mass is compared.
    shadow_steps: share of the steps on which one layer's experts run again, with either routing, for max_error.
    window: samples that a running figure remembers; it backs off after a quarter of them, goes up after all.
    recover: share of a bound that the rung above must stay below before it is used again.
    ladder: milder policies, in order; None: the policy's own `milder()` ones. vanilla always comes last.
    """

    max_mass_lost: float | None = None
    max_error: float | None = None
    max_kl: float | None = None
    steps: float = 1 / 4
    layers: float = 1 / 4
    shadow_steps: float = 1 / 512
    window: int = 32
    recover: float = 0.8
    ladder: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.bounds:
            raise ValueError("guard: give a bound: max_mass_lost or max_error, such as 0.1, or max_kl, such as 0.01")
        for name in ("max_mass_lost", "max_error", "max_kl", "steps", "layers", "shadow_steps", "recover"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value <= 1):
                raise ValueError(f"guard: {name}={value!r} must be a number above 0 and at most 1")
        if not isinstance(self.window, int) or self.window < SHORT * SHORT:
            raise ValueError(f"guard: window={self.window!r} must be a whole number, {SHORT * SHORT} or more")
        if self.ladder is not None:
            for spec in self.ladder:
                make_policy(spec)

    @classmethod
    def of(cls, given: Any) -> Self:
        """The options in a dictionary, as JSON gives it. Raises ValueError that says what is allowed."""
        allowed = [f.name for f in fields(cls)]
        if not isinstance(given, Mapping):
            raise ValueError(f'guard: got {given!r}, expected a dictionary, such as {{"max_mass_lost": 0.1}}')
        if unknown := sorted(set(given) - set(allowed)):
            raise ValueError(f"guard: unknown key {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
        ladder = given.get("ladder")
        if ladder is not None and not (isinstance(ladder, list | tuple) and all(isinstance(s, str) for s in ladder)):
            raise ValueError(f"guard: ladder={ladder!r} must be a list of spec strings")
        return cls(**{**given, "ladder": None if ladder is None else tuple(ladder)})

    @property
    def bounds(self) -> dict[str, float]:
        """The figures that are bounded."""
        pairs = {"mass_lost": self.max_mass_lost, "output_error": self.max_error, "kl": self.max_kl}
        return {name: bound for name, bound in pairs.items() if bound is not None}

    def rungs(self, policy: Policy, router: RouterSpec) -> list[Policy]:
        """The policy, its milder settings on such a router, and vanilla."""
        rungs = [policy]
        if self.ladder is not None:
            rungs += [make_policy(spec) for spec in self.ladder]
        while self.ladder is None and (milder := rungs[-1].milder(router)) is not None:
            rungs.append(milder)
        return rungs if rungs[-1].is_identity else [*rungs, make_policy("vanilla")]
