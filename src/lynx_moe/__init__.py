"""lynx-moe: faster mixture-of-experts decoding, by deciding per step which experts the batch loads."""

from typing import TYPE_CHECKING, Any

from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows

if TYPE_CHECKING:
    from lynx_moe.engines.transformers import apply, offload

__all__ = ["RouterSpec", "Routing", "Rows", "apply", "make_policy", "offload"]


def __getattr__(name: str) -> Any:
    """`apply` and `offload` come with the engine, which is imported when one is asked for."""
    if name in ("apply", "offload"):
        from lynx_moe.engines import transformers

        return getattr(transformers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
