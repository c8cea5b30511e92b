"""What an operator asks of SGLang with us: a JSON object in the environment variable LYNX_MOE_SGLANG.

SGLang starts its schedulers as processes of their own, and what plug-ins are told must reach all of them: they inherit
the variable. Its own arguments have no place for a plug-in's.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Self

from lynx_moe.calibration import artifact
from lynx_moe.engines.shared.options import EXAMPLE, KEY, Serving

VARIABLE = "LYNX_MOE_SGLANG"


@dataclass(frozen=True, kw_only=True)
class Options(Serving):
    """As `Serving` says; of what vLLM has besides (guard, shadow steps, prices that move, a policy for the model that
    drafts) SGLang has nothing. Raises ValueError."""

    def __post_init__(self) -> None:
        super().__post_init__()
        artifact.require(self.make_policy())
        self.check_presets()

    @classmethod
    def read(cls, text: str) -> dict[str, Any]:
        """What a JSON object says of options. Raises ValueError."""
        example = f"set {VARIABLE}='{EXAMPLE}'"
        try:
            return cls.known(json.loads(text), example)
        except json.JSONDecodeError:
            raise ValueError(f"{KEY}: {VARIABLE}={text!r} is no JSON; {example}") from None

    @classmethod
    def of(cls, text: str) -> Self:
        """The options that it says. Raises ValueError."""
        known = cls.read(text)
        if "policy" not in known:
            raise ValueError(f"{KEY}: no policy is named; set {VARIABLE}='{EXAMPLE}'")
        return cls(**known)

    @classmethod
    def asked(cls) -> Self | None:
        """The options that this process was started with; None: none, so the plug-in does nothing at all. Raises
        ValueError."""
        text = os.environ.get(VARIABLE)
        return None if text is None else cls.of(text)
