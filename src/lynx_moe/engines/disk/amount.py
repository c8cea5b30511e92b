"""How many experts of each layer stay in memory: a count, a share of them, or GiB of the whole model."""

import math
import re
from dataclasses import dataclass
from typing import Any, Self

GIB = 2**30
EXAMPLES = "a count of experts a layer (32), a share of them (25%), or memory for all layers together (4GiB)"


@dataclass(frozen=True)
class Amount:
    """As it was given: `number` experts a layer, percent of them, or GiB, as `unit` says ("", "%" or "GiB"), under the
    name that errors call it by."""

    number: float
    unit: str
    name: str = "experts_resident"

    @classmethod
    def of(cls, given: Any, name: str = "experts_resident") -> Self:
        """Raises ValueError for anything but a whole number of 1 or more, a share of up to 100%, or GiB."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(%|GiB)?", str(given)) if isinstance(given, int | str) else None
        if found is None or isinstance(given, bool):
            raise ValueError(f"{name}={given!r} must be {EXAMPLES}")
        number, unit = float(found[1]), found[2] or ""
        if number <= 0 or (unit == "" and number != int(number)) or (unit == "%" and number > 100):
            raise ValueError(f"{name}={given!r} must be above 0, and {EXAMPLES}")
        return cls(number, unit, name)

    def __str__(self) -> str:
        return f"{self.number:g}{self.unit}"

    def slots(self, num_experts: int, top_k: int, layers: int, expert_bytes: int) -> int:
        """Of one of so many alike layers: how many experts its memory holds, at most all.

        Raises ValueError where these are fewer than one row takes.
        """
        room = {
            "": self.number,
            "%": self.number / 100 * num_experts,
            "GiB": self.number * GIB / (layers * expert_bytes),
        }
        slots = min(int(room[self.unit] + 1e-9), num_experts)  # 29 % of 100 lies just below 29
        if slots < top_k:
            least = f"{top_k}, {_up(100 * top_k / num_experts)}% or {_up(top_k * layers * expert_bytes / GIB)}GiB"
            raise ValueError(
                f"{self.name}={self} holds {slots} of {num_experts} experts a layer, fewer than the {top_k} that "
                f"one row takes; the least is {least}"
            )
        return slots


def _up(value: float) -> str:
    """Three digits that are no less than the value, so that whoever follows an error gets no second one."""
    digits = 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.9f}".rstrip("0").rstrip(".")
