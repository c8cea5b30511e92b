"""SGLang's own routers against the rule that is read from them, and its own seam with the hook in it."""

from importlib import metadata
from typing import Any

import pytest
import sglang_here
import torch

from lynx_moe.engines.sglang.model import specs
from lynx_moe.engines.shared.layers import Bypass
from lynx_moe.routing import select

pytestmark = pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT)
T, E = 64, 32
OLD = sglang_here.HAS_SGLANG and metadata.version("sglang").startswith("0.5.22")
BIAS = torch.linspace(-0.5, 0.5, E)
RULES: list[dict[str, Any]] = [
    {"top_k": 4},
    {"top_k": 4, "renormalize": False},
    {"top_k": 1, "renormalize": False},
    {"top_k": 4, "scoring_func": "sigmoid"},
    {"top_k": 4, "scoring_func": "sigmoid", "renormalize": False, "correction_bias": BIAS},
    {"top_k": 4, "scoring_func": "sqrtsoftplus", "correction_bias": BIAS},
    {"top_k": 4, "use_grouped_topk": True, "topk_group": 2, "num_expert_group": 8},
    {"top_k": 4, "use_grouped_topk": True, "topk_group": 2, "num_expert_group": 4, "scoring_func": "sigmoid"},
    {"top_k": 4, "use_grouped_topk": True, "topk_group": 1, "num_expert_group": 1, "correction_bias": BIAS},
    {"top_k": 4, "use_grouped_topk": True, "topk_group": 2, "num_expert_group": 4, "correction_bias": BIAS},
]
RULES += [
    {**rule, "routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": applied}
    for rule in (RULES[0], RULES[3], RULES[6], RULES[9])
    for applied in (False, True)
]


def route(logits_TE: torch.Tensor, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from sglang.srt.layers.moe import topk

    found = topk.select_experts(torch.zeros(len(logits_TE), 2), logits_TE.clone(), config, layer_id=0)
    return found.topk_ids.long(), found.topk_weights.float()


def in_order(ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    order = ids_TK.argsort(-1)
    return ids_TK.gather(-1, order), weights_TK.gather(-1, order)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rule_is_the_router_s_own(rule: dict[str, Any]) -> None:
    from sglang.srt.layers.moe.topk import TopKConfig

    if OLD and rule.get("apply_routed_scaling_factor_on_output") and not rule.get("use_grouped_topk"):
        pytest.skip("0.5.22's torch-native router says 'Not implemented' to a factor on its weights")
    config = TopKConfig(torch_native=True, **rule)
    logits_TE = 2 * torch.randn(T, E, generator=torch.Generator().manual_seed(1))
    ids_TK, weights_TK = in_order(*route(logits_TE, config))
    ours = select(logits_TE, specs.spec_of(config, E))
    expected_ids, expected_weights = in_order(ours.ids, ours.weights)
    assert torch.equal(ids_TK, expected_ids)
    torch.testing.assert_close(weights_TK, expected_weights, rtol=1e-5, atol=1e-6)


def test_shared_experts_columns_are_not_the_router_s() -> None:
    from sglang.srt.layers.moe.topk import TopKConfig

    shared = pytest.importorskip("sglang.srt.configs.shared_experts", reason="SGLang 0.5.22 says it otherwise")
    columns = shared.SharedExpertsConfig(num_fused_shared_experts=1)
    config = TopKConfig(torch_native=True, shared_experts=columns, **{**RULES[9], "top_k": 5})
    logits_TE = 2 * torch.randn(T, E, generator=torch.Generator().manual_seed(1))
    ids_TK, weights_TK = route(logits_TE, config)
    assert (ids_TK[:, 4:] == E).all()
    ours = select(logits_TE, specs.spec_of(config, E))
    found, expected = in_order(ids_TK[:, :4], weights_TK[:, :4]), in_order(ours.ids, ours.weights)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


def test_functions_of_models_that_are_not_known_keep_their_routing() -> None:
    from sglang.srt.layers.moe.topk import TopKConfig

    with pytest.raises(Bypass, match="its own function"):
        specs.spec_of(TopKConfig(top_k=4, custom_routing_function=lambda: None), E)


def test_formats_that_pass_the_policy_by_are_named() -> None:
    from sglang.srt.layers.moe.topk import TopKConfig, TopKOutputFormat

    for name in ("TRITON_KERNEL", "BYPASSED", "PACKED"):
        assert specs.passes_by(TopKConfig(top_k=4, output_format=TopKOutputFormat[name])) == name
    assert specs.passes_by(TopKConfig(top_k=4, output_format=TopKOutputFormat.STANDARD)) is None
    assert specs.passes_by(TopKConfig(top_k=4)) is None
