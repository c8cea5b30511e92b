"""What an operator may ask of any engine that serves: the policy, and what requests may ask for beside it.

Every error names what was given, what is allowed, what to do.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from lynx_moe.control.options import is_number
from lynx_moe.policies import DEFAULT, POLICIES, Policy, make_policy

KEY = "lynx_moe"
EXACT = "exact"  # what a request says that must not be remapped
VANILLA = "vanilla"
BALANCED = "balanced"  # the server's policy, unless the operator gives it another meaning
FAST = f"{DEFAULT}:price=0.1"
REMAP, DRAFT = "remap", "draft"  # how drafts may be verified, beside EXACT
EXAMPLE = f'{{"policy": "{DEFAULT}"}}'


@dataclass(frozen=True, kw_only=True)
class Serving:
    """policy     spec string, such as "priced:price=0.01"; "vanilla" changes nothing, but counts.
    stats      count distinct experts (a few tensor operations per layer and step).
    log_every  seconds between log lines; 0: none.
    metrics_every  seconds between the numbers for /metrics; 0: none.
    presets    name -> spec: what requests may ask for by name, besides "exact", "balanced" and "fast".
    max_policies  how many specs of their own the running requests may bring at a time; 0: names only.
    verify     "exact": rows that verify a draft keep the model's routing; "remap": they may be remapped as rows that
               decode.

    Raises ValueError for a bad value.
    """

    ways: ClassVar[tuple[str, ...]] = (EXACT, REMAP)  # that `verify` may say
    policy: str
    stats: bool = True
    log_every: float = 60.0
    metrics_every: float = 1.0
    presets: Mapping[str, str] = field(default_factory=dict)
    max_policies: int = 4
    verify: str = EXACT

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str):
            raise ValueError(f'{KEY}: policy={self.policy!r} must be a spec string, such as "{DEFAULT}"')
        if not isinstance(self.stats, bool):
            raise ValueError(f"{KEY}: stats={self.stats!r} must be true or false")
        for name, what in (("log_every", "log line"), ("metrics_every", "metrics")):
            every = getattr(self, name)
            if not is_number(every) or every < 0:
                raise ValueError(f"{KEY}: {name}={every!r} must be a number of seconds, or 0 for no {what}")
        most = self.max_policies
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise ValueError(f"{KEY}: max_policies={most!r} must be a whole number, or 0 to allow named policies only")
        if self.verify not in self.ways:
            raise ValueError(f"{KEY}: verify={self.verify!r} must be one of {', '.join(map(repr, self.ways))}")

    def make_policy(self) -> Policy:
        return make_policy(self.policy)

    @property
    def for_target(self) -> str:
        """What the served model's layers follow where a request asks nothing."""
        return self.policy

    @property
    def remaps_drafts(self) -> bool:
        """Whether rows that verify a draft may be remapped where their request does not say."""
        return self.verify == REMAP

    @property
    def named(self) -> dict[str, str | None]:
        """What requests may ask for by name -> its spec; None: whatever the server's policy is at the time."""
        return {BALANCED: None, "fast": FAST, **self.presets}

    def check_presets(self) -> None:
        """Raises ValueError for a preset that is none."""
        example = f'{{"fast": "{FAST}"}}'
        if not isinstance(self.presets, Mapping):
            raise ValueError(f"{KEY}: presets={self.presets!r} must map names to spec strings, such as {example}")
        for name, spec in self.presets.items():
            if not isinstance(name, str) or not isinstance(spec, str):
                raise ValueError(f"{KEY}: preset {name!r}: {spec!r} must be two strings, such as {example}")
            if name == EXACT or name in POLICIES or not re.fullmatch(r"[\w-]+", name):
                what = f"letters, digits, - and _, and neither {EXACT!r} nor a policy's name"
                raise ValueError(f"{KEY}: preset {name!r} must be {what}; such as {example}")
            make_policy(spec)

    @classmethod
    def known(cls, given: Any, example: str) -> dict[str, Any]:
        """A copy of what is given. Raises ValueError if it is no dictionary of this class's keys; `example`: what to
        pass instead."""
        if not isinstance(given, dict):
            raise ValueError(f"{KEY}: got {given!r}, expected a dictionary; {example}")
        allowed = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise ValueError(f"{KEY}: unknown key {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
        return dict(given)
