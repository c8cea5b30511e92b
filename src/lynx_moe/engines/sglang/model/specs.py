"""SGLang's `TopKConfig` of a layer -> the rule that its router computes, or why it cannot be remapped."""

from typing import Any

from lynx_moe.engines.sglang.launch.versions import shared_columns
from lynx_moe.engines.shared.layers import Bypass
from lynx_moe.routing import RouterSpec

CUSTOM_FUNCTIONS: dict[tuple[str, str], dict[str, Any]] = {  # of models: (module, qualified name) -> their rule
    ("sglang.srt.models.llama4", "Llama4MoE.custom_routing_function"): {"scoring": "sigmoid", "renormalize": False},
}
PASSED_BY = ("TRITON_KERNEL", "BYPASSED", "PACKED")  # output formats of kernels that route by themselves


def spec_of(config: Any, num_experts: int) -> RouterSpec:
    """The rule of a router with num_experts logical experts. Raises Bypass where it is not known to be one.

    With groups and a bias SGLang takes the sigmoid whatever `scoring_func` says. Of the weights' factor only what is
    applied to the routed columns here counts: elsewhere it multiplies what the experts give."""
    scaled = config.apply_routed_scaling_factor_on_output and config.routed_scaling_factor is not None
    rule: dict[str, Any] = {
        "scoring": config.scoring_func,
        "renormalize": config.renormalize,
        "scale": float(config.routed_scaling_factor) if scaled else 1.0,
        "bias": config.correction_bias,
    }
    if config.custom_routing_function is not None:
        rule |= _custom(config.custom_routing_function)
    elif config.use_grouped_topk:
        groups = (config.num_expert_group, config.topk_group)
        rule["groups"] = groups if groups[0] > 1 else None
        if config.correction_bias is not None:
            rule["scoring"] = "sigmoid"
    try:
        return RouterSpec(num_experts=num_experts, top_k=config.top_k - shared_columns(config), **rule)
    except ValueError as error:
        raise Bypass(f"its settings are outside what a policy can compute: {error}") from None


def passes_by(config: Any) -> str | None:
    """The format in which this layer's choice goes to kernels that route by themselves; None: it does not."""
    name = getattr(config.output_format, "name", None)
    if config.output_format is not None and name in PASSED_BY:
        return str(name)
    return "packed ids" if getattr(config, "fused_gate_packed_ids", False) else None


def _custom(function: Any) -> dict[str, Any]:
    name = (getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function)))
    if name not in CUSTOM_FUNCTIONS:
        raise Bypass(f"the model routes by its own function {'.'.join(name)}, which is not known")
    return CUSTOM_FUNCTIONS[name]
