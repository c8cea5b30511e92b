"""LoRA beside remapping: adapters are vLLM's own. It wraps a layer's `MoERunner`, which keeps its router, so layers
with adapters of their experts ask the policy like others; and an adapter of a gate changes the logits that both see.
"""

from collections.abc import Iterable
from typing import Any


def refusal(layers: Iterable[Any], vllm_config: Any) -> str | None:
    """Why these `MoERunner`s cannot serve adapters; None: they can, or need not. With LoRA vLLM 0.32 takes its Triton
    kernels for unquantised experts wherever it runs, and an engine on a CPU ends at its first request."""
    if vllm_config.lora_config is None:
        return None
    for layer in layers:
        experts = getattr(layer.routed_experts.quant_method, "experts_cls", None)
        runs_here = getattr(experts, "_supports_current_device", None)
        if experts is not None and runs_here and not runs_here():
            return (
                f"with LoRA vLLM takes {experts.__name__} for the experts of {layer.layer_name}, which do not run on "
                "this device, so it would end at the first request; start without enable_lora (--enable-lora)"
            )
    return None
