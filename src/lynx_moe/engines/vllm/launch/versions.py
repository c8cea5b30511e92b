"""What differs between the supported versions of vLLM, read in their sources; the rest of this folder is alike in all.

0.26 is the newest that runs on torch 2.11. It lacks a selection bias for image tokens (`bias_vl`) and a way to ask a
configuration for the experts per token.
"""

from typing import Any

SUPPORTED = ((0, 26), (0, 30), (0, 31), (0, 32), (0, 33))
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k")


def image_bias(router: Any) -> tuple[Any, int]:
    """(bias_vl, image_sentinel_lo) of a router; (None, 0) where there is no such thing."""
    return getattr(router, "bias_vl", None), getattr(router, "image_sentinel_lo", 0)


def experts_per_token(model_config: Any) -> int:
    """The model's top-k; 0 where it says none."""
    if hasattr(model_config, "get_num_experts_per_tok"):
        return int(model_config.get_num_experts_per_tok())
    given = (getattr(model_config.hf_text_config, name, None) for name in EXPERTS_PER_TOKEN)
    return next((value for value in given if isinstance(value, int)), 0)
