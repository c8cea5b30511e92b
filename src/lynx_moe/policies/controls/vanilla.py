"""The baseline: the model's own routing, bit for bit."""

from dataclasses import dataclass
from typing import ClassVar

from lynx_moe.policies.contract.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Vanilla(Policy):
    """Changes nothing. An engine does no work for it; called directly, it returns `own`."""

    name: ClassVar[str] = "vanilla"
    summary: ClassVar[str] = "the model's own routing, bit-identical (the baseline)"
    source: ClassVar[str] = "-"
    is_identity: ClassVar[bool] = True
    own_only: ClassVar[bool] = True
