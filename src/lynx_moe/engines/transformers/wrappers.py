"""A model's modules as its own code names them, where PEFT has put others around some of them.

Around a module that it adapts PEFT puts one with a `base_layer` (another one around that, for each parameter), around
one that it trains whole, one with `original_module` and copies in `modules_to_save`. Both take the module's place and
name; what it computes is still done by the module inside.
"""

from collections.abc import Iterator
from typing import Any


def modules_of(model: Any) -> dict[str, Any]:
    """Name -> module in order, as `named_modules` gives them, without wrappers and what these add: a name stands for
    what is inside."""
    return dict(_walk("", model, set()))


def inside(module: Any) -> Any:
    """The module that wrappers have taken the place of, or the copy of it that is in use; others as they are."""
    while True:
        if hasattr(module, "get_base_layer") and hasattr(module, "base_layer"):
            module = module.base_layer
        elif hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
            active = next((name for name in module.active_adapters if name in module.modules_to_save), None)
            own = module.disable_adapters or active is None
            module = module.original_module if own else module.modules_to_save[active]
        else:
            return module


def _walk(name: str, module: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    module = inside(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for child, part in module.named_children():
        yield from _walk(f"{name}.{child}" if name else child, part, seen)
