"""Functions and methods of vLLM, replaced by wrappers around them."""

import functools
from collections.abc import Callable
from typing import Any

MARK = "_lynx_moe_wraps"


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replaces owner.name by around(original, *args, **kwargs), once."""
    original = getattr(owner, name)
    if getattr(original, MARK, None) is around:
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(wrapper, MARK, around)
    setattr(owner, name, wrapper)
