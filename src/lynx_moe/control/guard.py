"""The quality guard: a running figure of what a policy costs, and a ladder of milder settings to back off to.

Rung 0 is the policy that was asked for, the last rung is `vanilla`. Figures are taken on sampled steps and layers:

    mass_lost     share of the router weight of a row that falls to experts which the row did not get
    output_error  squared error of the MoE block's output against the model's own routing, as a share of its square

While backed off, the rung above is measured too, without its being used: only when its figures lie well below the
bounds does the guard go up again, so a setting that stays harmful is not tried out on anybody.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from lynx_moe.policies import Policy, make_policy
from lynx_moe.routing import RouterSpec

SHORT = 4  # a window is `window` samples for the mass, and a quarter of them for the rarer shadow steps


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """max_mass_lost, max_error: the operator's bounds on the two figures; at least one is given.
    steps, layers: share of the steps that a policy acts on, and of their layers, where the mass is compared.
    shadow_steps: share of the steps on which one layer's experts run again, with either routing, for max_error.
    window: samples that a running figure remembers; it backs off after a quarter of them, goes up after all.
    recover: share of a bound that the rung above must stay below before it is used again.
    ladder: milder policies, in order; None: the policy's own `milder()` ones. vanilla always comes last.
    """

    max_mass_lost: float | None = None
    max_error: float | None = None
    steps: float = 1 / 16
    layers: float = 1 / 4
    shadow_steps: float = 1 / 512
    window: int = 32
    recover: float = 0.8
    ladder: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_mass_lost is None and self.max_error is None:
            raise ValueError("guard: give a bound: max_mass_lost, such as 0.1, or max_error, such as 0.1, or both")
        for name in ("max_mass_lost", "max_error", "steps", "layers", "shadow_steps", "recover"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= 1):
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
        pairs = {"mass_lost": self.max_mass_lost, "output_error": self.max_error}
        return {name: bound for name, bound in pairs.items() if bound is not None}

    def rungs(self, policy: Policy, router: RouterSpec) -> list[Policy]:
        """The policy, its milder settings on such a router, and vanilla."""
        rungs = [policy]
        if self.ladder is not None:
            rungs += [make_policy(spec) for spec in self.ladder]
        while self.ladder is None and (milder := rungs[-1].milder(router)) is not None:
            rungs.append(milder)
        return rungs if rungs[-1].is_identity else [*rungs, make_policy("vanilla")]


class Running:
    """A mean that forgets: the newest of many samples weighs 1 / window, and the first ones are not held down."""

    def __init__(self, window: int) -> None:
        self.window, self.count, self.total, self.weight = window, 0, 0.0, 0.0

    def add(self, value: float) -> None:
        keep = 1 - 1 / self.window
        self.count += 1
        self.total, self.weight = keep * self.total + value, keep * self.weight + 1

    @property
    def mean(self) -> float:
        return self.total / self.weight if self.weight else 0.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of rung: what passed its bound, or what the rung above stayed below."""

    rung: int
    why: str
    backs_off: bool


class Guard:
    """Counts samples and says when to change the rung; `num_rungs` is the length of the ladder."""

    def __init__(self, options: GuardOptions, num_rungs: int) -> None:
        self.options, self.num_rungs, self.rung = options, num_rungs, 0
        self.samples = dict.fromkeys(options.bounds, 0)
        self.changes = {"back_off": 0, "recover": 0}
        self._restart()

    def climb(self, num_rungs: int) -> None:
        """A new ladder, from its first rung on; samples and changes go on being counted."""
        self.num_rungs, self.rung = num_rungs, 0
        self._restart()

    def _restart(self) -> None:
        self.now = {name: Running(self._window(name)) for name in self.options.bounds}
        self.above = {name: Running(self._window(name)) for name in self.options.bounds}

    def _window(self, figure: str) -> int:
        return self.options.window if figure == "mass_lost" else self.options.window // SHORT

    def add(self, figure: str, now: float, above: float | None) -> Change | None:
        """One sample of a figure at this rung and, while backed off, at the rung above. Returns a change, if due."""
        if figure not in self.now:
            return None
        self.samples[figure] += 1
        self.now[figure].add(now)
        if above is not None:
            self.above[figure].add(above)
        running, bound = self.now[figure], self.options.bounds[figure]
        if self.rung < self.num_rungs - 1 and running.count >= running.window // 4 and running.mean > bound:
            why = f"{figure} {running.mean:.3g} is above {bound:g} over the last {running.count} samples"
            return self._change(self.rung + 1, why, backs_off=True)
        if self.rung and all(self._fits(name) for name in self.above):
            means = ", ".join(f"{name} {one.mean:.3g}" for name, one in self.above.items())
            why = f"{means} would stay below {self.options.recover:g} of the bounds"
            return self._change(self.rung - 1, why, backs_off=False)
        return None

    def _fits(self, figure: str) -> bool:
        above = self.above[figure]
        return above.count >= above.window and above.mean < self.options.recover * self.options.bounds[figure]

    def _change(self, rung: int, why: str, *, backs_off: bool) -> Change:
        self.rung = rung
        self.changes["back_off" if backs_off else "recover"] += 1
        self._restart()
        return Change(rung=rung, why=why, backs_off=backs_off)
