"""A router module of transformers -> the rule that it computes, or why that is none that a policy can compute.

Every function takes the module that picks the experts and the module around it, where some models keep a bias.
"""

from collections.abc import Callable
from typing import Any

from lynx_moe.engines.shared.layers import Bypass
from lynx_moe.routing import RouterSpec

Reader = Callable[[Any, Any], RouterSpec]


def _spec(router: Any, **rule: Any) -> RouterSpec:
    return RouterSpec(num_experts=router.num_experts, top_k=router.top_k, **rule)


def softmax(router: Any, _: Any) -> RouterSpec:
    """Weights that sum to one."""
    return _spec(router)


def softmax_by_flag(router: Any, _: Any) -> RouterSpec:
    return _spec(router, renormalize=router.norm_topk_prob)


def softmax_biased(router: Any, _: Any) -> RouterSpec:
    return _spec(router, bias=router.moe_statics.e_score_correction_bias.flatten())


def softmax_raw(router: Any, _: Any) -> RouterSpec:
    return _spec(router, renormalize=False)


def softmax_scaled(router: Any, _: Any) -> RouterSpec:
    config, scale = router.config, router.per_expert_scale
    return RouterSpec(num_experts=config.num_experts, top_k=config.top_k_experts, expert_scale=scale)


def sparsemixer(router: Any, _: Any) -> RouterSpec:
    return _spec(router, scoring="sparsemixer", renormalize=False, jitter=router.router_jitter_noise)


def softmax_or_sigmoid(router: Any, _: Any) -> RouterSpec:
    sigmoid = router.expert_selection_fn == "sigmoid"
    return _spec(router, scoring=router.expert_selection_fn, renormalize=router.norm_topk_prob or not sigmoid)


def dbrx(router: Any, block: Any) -> RouterSpec:
    """Here `router` is the block that picks the experts; it divides the weights by their p-norm."""
    norm = router.moe_normalize_expert_weights
    if norm not in (None, 1):
        raise Bypass(f"its weights are divided by their {norm:g}-norm (only 1 is a rule that a policy can compute)")
    num_experts = router.router.layer.out_features
    return RouterSpec(num_experts=num_experts, top_k=router.top_k, renormalize=norm is not None)


def deepseek_v2(router: Any, _: Any) -> RouterSpec:
    grouped = router.topk_method == "group_limited_greedy"
    groups = (router.num_group, router.topk_group) if grouped else None
    return _spec(router, renormalize=False, scale=router.routed_scaling_factor, groups=groups)


def deepseek_v3(router: Any, _: Any) -> RouterSpec:
    return _spec(router, scoring="sigmoid", bias=router.e_score_correction_bias, **_grouped(router))


def mistral4(router: Any, _: Any) -> RouterSpec:
    """A group's score is the sum of its two best although there is no bias: a bias of zeros says so."""
    rule = _grouped(router)
    bias = None if rule["groups"] is None else router.weight.detach().new_zeros(router.num_experts)
    return _spec(router, bias=bias, **rule)


def _grouped(router: Any) -> dict[str, Any]:
    groups = None if router.num_group in (None, 1) else (router.num_group, router.topk_group)
    return {"renormalize": router.norm_topk_prob, "scale": router.routed_scaling_factor, "groups": groups}


def longcat(router: Any, _: Any) -> RouterSpec:
    if router.n_routed_experts != router.num_experts:
        raise Bypass(
            "it has zero experts (copies of the input, free of cost), which batch-aware routing does not model"
        )
    scale, bias = router.routed_scaling_factor, router.e_score_correction_bias
    return _spec(router, renormalize=False, scale=scale, bias=bias)


def deepseek_v4(router: Any, _: Any) -> RouterSpec:
    kinds = {"SqrtSoftplusActivation": "sqrtsoftplus", "Sigmoid": "sigmoid"}
    kind = type(router.score_fn).__name__
    if kind not in kinds:
        raise Bypass(f"its scores are {kind}, which is not known")
    scale, bias = router.routed_scaling_factor, router.e_score_correction_bias
    return _spec(router, scoring=kinds[kind], scale=scale, bias=bias)


def sigmoid_raw(router: Any, _: Any) -> RouterSpec:
    return _spec(router, scoring="sigmoid", renormalize=False)


def sigmoid_biased(router: Any, _: Any) -> RouterSpec:
    return _spec(router, scoring="sigmoid", bias=router.e_score_correction_bias)


def minimax_m2(router: Any, block: Any) -> RouterSpec:
    return _spec(router, scoring="sigmoid", bias=block.e_score_correction_bias)


def hy_v3(router: Any, block: Any) -> RouterSpec:
    scale, bias = router.router_scaling_factor, block.e_score_correction_bias
    return _spec(router, scoring="sigmoid", scale=scale, bias=bias)


def afmoe(router: Any, block: Any) -> RouterSpec:
    return _spec(router, scoring="sigmoid", scale=router.route_scale, bias=block.expert_bias)


def lfm2(router: Any, block: Any) -> RouterSpec:
    bias = block.expert_bias if router.use_expert_bias else None
    scale, renormalize = router.routed_scaling_factor, router.norm_topk_prob
    return _spec(router, scoring="sigmoid", renormalize=renormalize, scale=scale, bias=bias)
