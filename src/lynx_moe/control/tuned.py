"""Tuned settings: which policy acts at which batch size, as `lynx-moe tune` measured it on one model. Readable JSON:

    {"lynx_moe_tuned": 1, "model": {"name": "qwen3-moe", "type": "qwen3_moe", ...}, "max_kl": 0.01,
     "batches": {"1": "vanilla", "2-4": "priced:price=0.003", "9-16": "priced:price=0.01"}, "about": {...}}

A batch is the number of rows of a step that may be remapped, by the buckets of `sampling`. One that was not tuned lies
outside those that were, and is exact; or between two of them. There, where both settings are one policy, the lower
price acts: both sizes hold the bound at it, and so does every size between them if the KL only falls, or only rises,
with the batch. Of two policies neither was measured at the other's size, so the steps between them are exact.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from lynx_moe.control.options import is_number
from lynx_moe.control.sampling import bucket, in_order
from lynx_moe.policies import make_policy

KEY, VERSION = "lynx_moe_tuned", 1
EXACT = "vanilla"
AGAIN = "make it again with `lynx-moe tune`"


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """model: what identifies the model, plain values by name. max_kl: the bound, in nats. batches: bucket -> spec.
    about: how it was measured, for readers."""

    model: Mapping[str, Any]
    max_kl: float
    batches: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Mapping) or not isinstance(self.about, Mapping):
            raise ValueError('"model" and "about" must be JSON objects')
        if not (is_number(self.max_kl) and 0 < self.max_kl < float("inf")):
            raise ValueError(f'"max_kl" is {self.max_kl!r}, no number of nats above 0')
        if not isinstance(self.batches, Mapping) or not self.batches:
            raise ValueError('"batches" must map sizes to spec strings, such as {"9-16": "priced:price=0.01"}')
        for name, spec in self.batches.items():
            first = str(name).partition("-")[0]
            if not (first.isdecimal() and int(first) and bucket(int(first)) == name):
                raise ValueError(f"batch {name!r} is none of 1, 2-4, 5-8, 9-16 and so on by powers of two")
            make_policy(spec)

    @classmethod
    def of(cls, given: Any) -> Self:
        """What a file holds. Raises ValueError that says what is wrong with it."""
        if not isinstance(given, Mapping) or KEY not in given:
            raise ValueError(f"it holds no tuned settings (a JSON object with {KEY!r}); {AGAIN}")
        if given[KEY] != VERSION:
            raise ValueError(f"it is of version {given[KEY]!r}, this lynx-moe reads {VERSION}; {AGAIN}")
        names = set(given) - {KEY}
        missing, unknown = {"model", "max_kl", "batches"} - names, names - {"model", "max_kl", "batches", "about"}
        for what, found in (("lacks", missing), ("has the unknown key", unknown)):
            if found:
                raise ValueError(f"it {what} {', '.join(map(repr, sorted(found)))}; {AGAIN}")
        return cls(**{name: given[name] for name in names})

    def told(self) -> dict[str, Any]:
        """As `of` takes it."""
        batches = {name: self.batches[name] for name in in_order(list(self.batches))}
        return {KEY: VERSION, **asdict(self), "batches": batches}

    @property
    def specs(self) -> list[str]:
        """Every setting that may act, those that remap first; the first one stands for the server's policy."""
        named = [self.batches[name] for name in in_order(list(self.batches))]
        return sorted(dict.fromkeys([*named, EXACT]), key=lambda spec: make_policy(spec).is_identity)

    def setting(self, batch: str) -> str:
        """The spec that acts in a bucket."""
        if batch in self.batches:
            return self.batches[batch]
        order = in_order([*self.batches, batch])
        place = order.index(batch)
        if place in (0, len(order) - 1):
            return EXACT
        below, above = (self.batches[order[place + side]] for side in (-1, 1))
        one, other = make_policy(below), make_policy(above)
        if one.is_identity or other.is_identity or one.without_price() != other.without_price():
            return EXACT
        return below if one.asks <= other.asks else above


class ByBatch:
    """The settings of one engine, and how often each acted."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned = tuned
        self.specs: dict[str, str] = dict(tuned.batches)
        self.steps: dict[str, int] = dict.fromkeys(tuned.batches, 0)

    def at(self, rows: int) -> str:
        """The spec that acts in the step that comes, of so many rows, one or more."""
        batch = bucket(rows)
        if batch not in self.specs:
            self.specs[batch] = self.tuned.setting(batch)
        self.steps[batch] = self.steps.get(batch, 0) + 1
        return self.specs[batch]

    def state(self) -> dict[str, Any]:
        """In plain values; tuned: whether the size was measured."""
        return {
            "max_kl": self.tuned.max_kl,
            "model": self.tuned.model.get("name", ""),
            "batches": [
                {
                    "batch": name,
                    "policy": self.specs[name],
                    "steps": self.steps[name],
                    "tuned": name in self.tuned.batches,
                }
                for name in in_order(list(self.specs))
            ],
        }
