"""What an operator may change on a running server: the policy, and the goals that move its prices."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lynx_moe.engines.shared.options import KEY

PATH = f"/{KEY}/policy"
GOALS = ("max_kl", "slo_tpot_ms")
LONGEST = 16  # digits of a whole number
EXAMPLE = '{"policy": "SPEC"}, {"slo_tpot_ms": 25} or {"max_kl": 0.01, "slo_tpot_ms": null} (null: off)'


@dataclass(frozen=True, kw_only=True)
class Switch:
    """policy: a spec string; None: it stays. goals: those that are named, by name; None: off. Their values are checked
    where they are known, by the engine."""

    policy: str | None = None
    goals: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.policy is None or isinstance(self.policy, str)):
            raise ValueError(f"a policy is named by its spec string, such as 'priced', not by {self.policy!r}")
        if unknown := sorted(set(self.goals) - set(GOALS)):
            raise ValueError(f"{', '.join(map(repr, unknown))} cannot be changed; allowed: policy, {', '.join(GOALS)}")

    @classmethod
    def of(cls, body: bytes) -> Self:
        """What the body of a POST asks. Raises ValueError that says what is allowed."""
        try:
            given = json.loads(body, parse_int=_whole)
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict) or not given or not isinstance(given.get("policy", ""), str):
            raise ValueError(f"the body must be a JSON object {EXAMPLE}")
        policy = given.pop("policy", None)
        return cls(policy=policy, goals=given)

    @property
    def body(self) -> dict[str, Any]:
        """As `of` takes it."""
        return ({} if self.policy is None else {"policy": self.policy}) | dict(self.goals)


def _whole(text: str) -> float:
    """A number of JSON without a point; no larger ones than messages between processes can hold."""
    return int(text) if len(text) < LONGEST else float(text)
