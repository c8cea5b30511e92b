"""A vLLM router object -> the rule it computes, or why it cannot be remapped.

Read from the router that vLLM's factory made and not from the factory's arguments, because routers ignore some of them:
on a CPU an ungrouped softmax router (vLLM 0.32) applies neither the selection bias nor the scaling factor.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from lynx_moe.engines.shared.layers import Bypass
from lynx_moe.engines.vllm.launch.versions import image_bias
from lynx_moe.routing import RouterSpec

# Routing functions that models bring along: (module, qualified name) -> their rule; `renormalize` is the router's where
# it is missing.
CUSTOM_FUNCTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("vllm.model_executor.models.llama4", "Llama4MoE.custom_routing_function"): {
        "scoring": "sigmoid",
        "renormalize": False,
    },
    ("vllm.model_executor.models.cohere2_moe", "token_choice_with_bias"): {"scoring": "sigmoid"},
    ("vllm.model_executor.models.phimoe", "phimoe_routing_function"): {
        "scoring": "sparsemixer",
        "renormalize": False,
        "jitter": 0.01,  # the default of vLLM's sparsemixer; the model's configuration is not asked
    },
    ("vllm.model_executor.models.gemma4", "Gemma4Router.routing_function"): {"renormalize": True},
}
REASONS = {
    "RoutingSimulatorRouter": "VLLM_MOE_ROUTING_SIMULATION_STRATEGY replaces the router",
    "ZeroExpertRouter": "the router has zero experts (copies of the input), which batch-aware routing does not model",
    "AiterSharedRoutedFusedMoERouter": "shared experts are fused into the routed ones",
}


def spec_of(router: Any, num_experts: int) -> RouterSpec:
    """The rule of a vLLM router with num_experts logical experts. Raises Bypass where it is not known to be one."""
    kind = type(router).__name__
    read = READERS.get(kind)
    if read is None:
        raise Bypass(REASONS.get(kind, f"router {kind} is not known"))
    if getattr(router, "_hash_indices_table", None) is not None:
        raise Bypass("experts are chosen by token id (hash routing), not by logits")
    if getattr(router, "num_fused_shared_experts", 0):
        raise Bypass("shared experts are fused into the routed ones")
    if image_bias(router)[0] is not None:
        raise Bypass("image tokens have a selection bias of their own")
    try:
        return RouterSpec(num_experts=num_experts, top_k=router.top_k, **read(router))
    except ValueError as error:
        raise Bypass(f"its settings are outside what a policy can compute: {error}") from None


def _grouped(router: Any) -> dict[str, Any]:
    n_group = router.num_expert_group
    groups = (n_group, router.topk_group) if n_group > 1 else None
    return {**_biased(router), "groups": groups}


def _biased(router: Any) -> dict[str, Any]:
    return {
        "scoring": router.scoring_func,
        "renormalize": router.renormalize,
        "scale": router.routed_scaling_factor,
        "bias": router.e_score_correction_bias,
    }


def _plain(router: Any) -> dict[str, Any]:
    return {"scoring": router.scoring_func, "renormalize": router.renormalize}


def _custom(router: Any) -> dict[str, Any]:
    function: Callable[..., Any] = router.custom_routing_function
    if isinstance(function, partial):
        function = function.func
    name = (getattr(function, "__module__", ""), getattr(function, "__qualname__", repr(function)))
    if name not in CUSTOM_FUNCTIONS:
        raise Bypass(f"the model routes by its own function {'.'.join(name)}, which is not known")
    owner = getattr(function, "__self__", None)  # Gemma 4's method: weights load into the very tensor named here
    scale = getattr(owner, "per_expert_scale", None)
    return {"renormalize": router.renormalize, "expert_scale": scale, **CUSTOM_FUNCTIONS[name]}


def _cpu(router: Any) -> dict[str, Any]:
    if router.use_grouped_topk:
        return _grouped(router)
    if router.scoring_func == "sqrtsoftplus":
        return _biased(router)
    return _plain(router) if router.custom_routing_function is None else _custom(router)


READERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "CPURouter": _cpu,
    "GroupedTopKRouter": _grouped,
    "FusedTopKBiasRouter": _biased,
    "FusedTopKRouter": _plain,
    "CustomRoutingRouter": _custom,
}
