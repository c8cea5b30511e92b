"""The rule read from a vLLM router is the rule that this router computes; what is not known is left alone."""

from functools import partial
from types import MethodType, SimpleNamespace

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk
from vllm.model_executor.layers.fused_moe.router.routing_simulator_router import RoutingSimulatorRouter
from vllm.model_executor.models.cohere2_moe import token_choice_with_bias
from vllm.model_executor.models.gemma4 import Gemma4Router
from vllm.model_executor.models.llama4 import Llama4MoE
from vllm.model_executor.models.phimoe import phimoe_routing_function

from lynx_moe.engines.vllm.model.specs import Bypass, spec_of
from lynx_moe.routing import select

E, K, T = 256, 8, 50
BIAS = torch.linspace(-0.2, 0.2, E)[torch.arange(E) * 7 % E]
GROUPED = {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
ROUTERS = {
    "softmax": {"renormalize": True},
    "softmax, raw": {"renormalize": False},
    "a CPU router ignores scale and bias": {"routed_scaling_factor": 2.0, "e_score_correction_bias": BIAS},
    "grouped": {**GROUPED, "renormalize": False, "routed_scaling_factor": 2.0},
    "grouped, one group": {**GROUPED, "num_expert_group": 1, "topk_group": 1},
    "deepseek-v3": {
        **GROUPED,
        "scoring_func": "sigmoid",
        "e_score_correction_bias": BIAS,
        "routed_scaling_factor": 2.5,
    },
    "deepseek-v4": {
        "scoring_func": "sqrtsoftplus",
        "e_score_correction_bias": BIAS,
        "routed_scaling_factor": 1.5,
    },
    "llama4": {"custom_routing_function": Llama4MoE.custom_routing_function, "renormalize": False},
    "cohere2": {"custom_routing_function": token_choice_with_bias, "renormalize": True},
    "cohere2, raw": {"custom_routing_function": token_choice_with_bias, "renormalize": False},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_the_rule_is_the_router_s_own(name):
    assert_rule(CPURouter(top_k=K, global_num_experts=E, **ROUTERS[name]))


def test_phimoe_takes_two_experts_and_weighs_each_among_those_close_to_it():
    settings = {"custom_routing_function": phimoe_routing_function, "renormalize": False}
    router = CPURouter(top_k=2, global_num_experts=E, **settings)
    assert_rule(router, spread=0.02)


def test_gemma4_scales_each_expert_by_what_was_loaded_after_the_rule_was_read():
    gate = SimpleNamespace(per_expert_scale=torch.nn.Parameter(torch.ones(E), requires_grad=False))
    method = MethodType(Gemma4Router.routing_function, gate)
    router = CPURouter(top_k=K, global_num_experts=E, custom_routing_function=method)
    assert_rule(router)
    gate.per_expert_scale.copy_(1 + BIAS)
    assert_rule(router)


def assert_rule(router, spread=1.0):
    logits = 3 + spread * torch.randn(T, E)
    spec = spec_of(router, E)
    weights, ids = router._compute_routing(torch.zeros(T, 8), logits, torch.int32)
    ours = select(logits, spec)
    order, our_order = ids.long().argsort(-1), ours.ids.argsort(-1)
    assert torch.equal(ids.long().gather(-1, order), ours.ids.gather(-1, our_order))
    torch.testing.assert_close(weights.gather(-1, order), ours.weights.gather(-1, our_order), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"custom_routing_function": grouped_topk}, "its own function .*grouped_topk, which is not known"),
        ({"custom_routing_function": partial(lambda **_: None)}, "its own function"),
        (
            {"scoring_func": "sqrtsoftplus", "hash_indices_table": torch.zeros(9, K, dtype=torch.int32)},
            "hash routing",
        ),
        ({**GROUPED, "num_expert_group": 5}, "n_group must divide"),
    ],
)
def test_what_is_not_known_is_left_alone(settings, message):
    with pytest.raises(Bypass, match=message):
        spec_of(CPURouter(top_k=K, global_num_experts=E, **settings), E)


def test_other_routers_are_left_alone():
    with pytest.raises(Bypass, match="VLLM_MOE_ROUTING_SIMULATION_STRATEGY"):
        spec_of(RoutingSimulatorRouter(top_k=K, global_num_experts=E), E)
    router = CPURouter(top_k=K, global_num_experts=E)
    router.bias_vl = BIAS
    with pytest.raises(Bypass, match="image tokens"):
        spec_of(router, E)
