"""lynx-moe: faster mixture-of-experts decoding, by deciding per step which experts the batch loads."""

from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows

__all__ = ["RouterSpec", "Routing", "Rows", "make_policy"]
