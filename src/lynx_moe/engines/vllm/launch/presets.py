"""What requests may ask for by a name that the operator gave it."""

import re
from collections.abc import Mapping
from typing import Any

from lynx_moe.policies import POLICIES, make_policy


def check(key: str, presets: Any, exact: str, fast: str) -> None:
    """Raises ValueError unless it maps names to spec strings. exact: the name that has its meaning already; fast: a
    spec, for an example."""
    example = f'{{"fast": "{fast}"}}'
    if not isinstance(presets, Mapping):
        raise ValueError(f"{key}: presets={presets!r} must map names to spec strings, such as {example}")
    for name, spec in presets.items():
        if not isinstance(name, str) or not isinstance(spec, str):
            raise ValueError(f"{key}: preset {name!r}: {spec!r} must be two strings, such as {example}")
        if name == exact or name in POLICIES or not re.fullmatch(r"[\w-]+", name):
            what = f"letters, digits, - and _, and neither {exact!r} nor a policy's name"
            raise ValueError(f"{key}: preset {name!r} must be {what}; such as {example}")
        make_policy(spec)
