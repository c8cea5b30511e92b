"""What requests may ask for by name, where the operator says so."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from lynx_moe.policies import DEFAULT, make_policy


def check(presets: Any, taken: Collection[str]) -> None:
    """Raises ValueError unless `presets` maps names, none of them `taken`, to specs."""
    example = f'{{"fast": "{DEFAULT}:price=0.1"}}'
    if not isinstance(presets, Mapping):
        raise ValueError(f"lynx_moe: presets={presets!r} must map names to spec strings, such as {example}")
    for name, spec in presets.items():
        if not isinstance(name, str) or not isinstance(spec, str):
            raise ValueError(f"lynx_moe: preset {name!r}: {spec!r} must be two strings, such as {example}")
        if name in taken or not re.fullmatch(r"[\w-]+", name):
            what = f"letters, digits, - and _, and neither {next(iter(taken))!r} nor a policy's name"
            raise ValueError(f"lynx_moe: preset {name!r} must be {what}; such as {example}")
        make_policy(spec)
