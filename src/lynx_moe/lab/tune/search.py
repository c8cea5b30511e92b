"""What is tried: each policy as it was named, or, where its price was left open, prices by bisection.

The KL of a step grows with its price, and the experts that it loads become fewer. So of one policy's prices the highest
that holds the bound is the cheapest.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from lynx_moe.control.bound import price_list
from lynx_moe.policies import make_policy

Line = dict[str, Any]
Figures = Callable[[Sequence[str]], dict[str, Line]]  # of these specs: what fidelity measures, "kl", "after" and so on


class Levels:
    """One named policy: its settings from the mildest on, and where the last one that holds must lie."""

    def __init__(self, named: str) -> None:
        policy = make_policy(named)
        self.specs = [policy.spec]
        if policy.knows_prices and not re.search(r"\bprice *=", named):
            self.specs = [policy.at_price(float(f"{price:.3g}")).spec for price in price_list(knows_prices=True)[1:]]
        self.holds, self.fails = -1, len(self.specs)

    @property
    def next(self) -> str | None:
        """What is to be measured; None: nothing more."""
        return self.specs[self._middle] if self.fails - self.holds > 1 else None

    def hear(self, *, holds: bool) -> None:
        if holds:
            self.holds = self._middle
        else:
            self.fails = self._middle

    @property
    def _middle(self) -> int:
        return (self.holds + self.fails) // 2


def search(named: Sequence[str], max_kl: float, figures: Figures) -> dict[str, Line]:
    """The settings that hold the bound, the one that loads the fewest experts first. A setting holds it where the upper
    end of the KL's 95 % interval does, and is of use where it loads fewer experts than the model's own routing."""
    levels, found = [Levels(one) for one in named], dict[str, Line]()
    while wanted := {one: spec for one in levels if (spec := one.next) is not None}:
        lines = figures(list(dict.fromkeys(wanted.values())))
        for one, spec in wanted.items():
            one.hear(holds=(holds := lines[spec]["kl_interval"][1] <= max_kl))
            if holds and lines[spec]["after"] < lines[spec]["before"]:
                found[spec] = lines[spec]
    return dict(sorted(found.items(), key=lambda item: item[1]["after"]))


def verified(found: dict[str, Line], max_kl: float, figures: Figures) -> tuple[str, Line] | None:
    """The first of them whose mean KL holds the bound on documents that it was not chosen on; None: none does."""
    for spec in found:
        line = figures([spec])[spec]
        if line["kl"] <= max_kl:
            return spec, line
    return None
