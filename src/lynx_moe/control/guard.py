"""The quality guard: a running figure of what a policy costs, and a ladder of milder settings to back off to.

Rung 0 is the policy that was asked for, the last rung is `vanilla`. Figures are taken on sampled steps and layers:

    mass_lost     share of the router weight of a row that falls to experts which the row did not get
    output_error  squared error of the MoE block's output against the model's own routing, as a share of its square
    kl            KL(exact || policy) of the next token, in nats

While backed off, the rung above is measured too, without its being used: only when its figures lie well below the
bounds does the guard go up again, so a setting that stays harmful is not tried out on anybody.
"""

from dataclasses import dataclass

from lynx_moe.control.options import SHORT, GuardOptions


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
