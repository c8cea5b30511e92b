"""lynx-moe: faster mixture-of-experts decoding, by deciding per step which experts the batch loads."""

from typing import TYPE_CHECKING, Any

from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows

if TYPE_CHECKING:
    from lynx_moe.engines.transformers import apply

__all__ = ["RouterSpec", "Routing", "Rows", "apply", "make_policy"]


def __getattr__(name: str) -> Any:
    """`apply` comes with the engine, which is imported when it is asked for."""
    if name == "apply":
        from lynx_moe.engines.transformers import apply

        return apply
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
