"""Replacing methods of single objects, and putting everything back.

Not forward hooks: torch.compile takes the hooks of a module for fixed once it has compiled (torch 2.13: one that comes
later is ignored, one that goes stays in the graph, both without a word), but looks up an instance's methods every time.
"""

import functools
from collections.abc import Callable
from typing import Any

MARK = "_lynx_moe"
ABSENT = object()


class Wraps:
    """The methods that are replaced at the moment."""

    def __init__(self) -> None:
        self.replaced: list[tuple[Any, str, Any]] = []

    def add(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """owner.name(...) becomes around(original, ...), for this object alone."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        setattr(wrapper, MARK, True)
        self.replaced.append((owner, name, vars(owner).get(name, ABSENT)))
        setattr(owner, name, wrapper)

    def undo(self) -> None:
        """Everything as it was, last change first."""
        while self.replaced:
            owner, name, before = self.replaced.pop()
            if before is ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def is_wrapped(owner: Any, name: str) -> bool:
    return hasattr(vars(owner).get(name), MARK)
