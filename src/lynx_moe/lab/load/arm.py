"""What takes turns on a server: a policy, and the goals that it follows there, such as `priced@slo_tpot_ms=70`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from lynx_moe.engines.shared.switching import GOALS, Switch
from lynx_moe.policies import make_policy

SIGN = "@"


@dataclass(frozen=True)
class Arm:
    """name: as it was asked for; spec: the policy's in full; goals: by name."""

    name: str
    spec: str
    goals: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str) -> Self:
        """Of POLICY or POLICY@GOAL=NUMBER,... Raises ValueError."""
        policy, sign, rest = text.partition(SIGN)
        goals: dict[str, float] = {}
        for part in rest.split(",") if sign else ():
            name, _, value = part.partition("=")
            try:
                goals[name] = float(value)
            except ValueError:
                name = ""
            if name not in GOALS:
                example = f"{policy}{SIGN}{GOALS[-1]}=70"
                raise ValueError(f"{text!r}: {part!r} is no goal; allowed: {', '.join(GOALS)}, such as {example}")
        return cls(text, make_policy(policy).spec, goals)

    def begins_anew(self, before: "Arm | None") -> bool:
        """Whether its goals know nothing of what they moved before: another policy, or none of them, was on."""
        return before is None or before.spec != self.spec or not set(self.goals) <= set(before.goals)

    def switch(self, names: Sequence[str], before: "Arm | None" = None) -> Switch:
        """What puts it on; names: the goals of all that take turns, of which it turns off those that it has not. Where
        `before` has the same policy and is followed by goals of the same kind, the policy is not named: what they have
        learnt is kept."""
        stays = self.goals and not self.begins_anew(before)
        return Switch(policy=None if stays else self.spec, goals={name: self.goals.get(name) for name in names})


def arms_of(texts: Sequence[str]) -> list[Arm]:
    """Raises ValueError for a bad one, for none at all, and where two are the same."""
    arms = [Arm.of(text) for text in texts]
    if not arms or len({(arm.spec, *sorted(arm.goals.items())) for arm in arms}) < len(arms):
        raise ValueError(f"name at least one policy, and each of them once; given: {' '.join(texts) or 'none'}")
    return arms
