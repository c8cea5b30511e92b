"""select() equals vLLM's routers that run on a CPU: its CPU router, grouped top-k, biased top-k, models' own functions.

Top-k is not sorted there: experts are compared as sets, weights expert by expert.
"""

import importlib
from typing import Any

import pytest
import torch

from lynx_moe.routing import RouterSpec

ROUTERS = "vllm.model_executor.layers.fused_moe.router"
PLAIN = ((7, 3), (6, 1), (60, 4), (128, 8))  # (experts, top_k)
TWO = ((7, 2), (16, 2), (60, 2))
GROUPED = ((12, 5, 4, 2), (60, 7, 6, 2), (64, 6, 8, 3), (20, 4, 1, 1))  # and (n_group, topk_group)
KERNEL = ((64, 6), (128, 8), (256, 6), (384, 8))  # what biased_topk_cpu is compiled for


def cpu_router(logits_TE, spec, custom=None):
    n_group, topk_group = spec.groups or (None, None)
    router = importlib.import_module(f"{ROUTERS}.cpu_router").CPURouter(
        top_k=spec.top_k,
        global_num_experts=spec.num_experts,
        use_grouped_topk=spec.groups is not None,
        num_expert_group=n_group,
        topk_group=topk_group,
        renormalize=spec.renormalize,
        scoring_func=spec.scoring,
        routed_scaling_factor=spec.scale,
        e_score_correction_bias=spec.bias,
        custom_routing_function=custom,
    )
    return router._compute_routing(torch.zeros(len(logits_TE), 4), logits_TE, None)


def grouped_topk(logits_TE, spec):
    """The definition that the CUDA and ROCm kernels replace."""
    native = importlib.import_module(f"{ROUTERS}.grouped_topk_router").grouped_topk
    rule = (spec.top_k, spec.renormalize, *spec.groups, spec.scoring, spec.scale, spec.bias)
    return native(logits_TE, logits_TE, *rule)


def fused_topk_bias(logits_TE, spec):
    """The path without a fused kernel, which vLLM takes where AITER has none that fits."""
    module = importlib.import_module(f"{ROUTERS}.fused_topk_bias_router")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.rocm_aiter_ops, "is_fused_moe_enabled", lambda: True)
        patch.setattr(module, "_aiter_can_use_biased_grouped_topk", lambda *_: False)
        return module.fused_topk_bias(
            logits_TE,
            logits_TE,
            spec.scoring,
            spec.bias,
            spec.top_k,
            spec.renormalize,
            routed_scaling_factor=spec.scale,
        )


def models_own(module, name):
    return importlib.import_module(f"vllm.model_executor.models.{module}").__dict__[name]


def llama4(logits_TE, spec):
    return cpu_router(logits_TE, spec, models_own("llama4", "Llama4MoE").custom_routing_function)


def cohere2(logits_TE, spec):
    return cpu_router(logits_TE, spec, models_own("cohere2_moe", "token_choice_with_bias"))


def gemma4(logits_TE, spec):
    return models_own("gemma4", "gemma4_routing_function_torch")(logits_TE, spec.top_k, spec.expert_scale)


def phimoe(logits_TE, spec):
    return cpu_router(logits_TE, spec, models_own("phimoe", "phimoe_routing_function"))


SOFTMAX: dict[str, Any] = {"scoring": "softmax"}
SIGMOID: dict[str, Any] = {"scoring": "sigmoid"}
SQRTSOFTPLUS: dict[str, Any] = {"scoring": "sqrtsoftplus"}
RAW, SCALE = {"renormalize": False}, {"scale": 2.5}

CASES = {  # router, sizes, whether there is a selection bias, the rest of the spec
    "cpu-softmax": (cpu_router, PLAIN, False, SOFTMAX),
    "cpu-softmax-raw": (cpu_router, PLAIN, False, SOFTMAX | RAW),
    "cpu-sqrtsoftplus-bias": (cpu_router, KERNEL, True, SQRTSOFTPLUS | SCALE),
    **{
        f"{router.__name__}-{'-'.join(map(str, spec.values()))}{'-bias' * bias}": (router, sizes, bias, spec)
        for router, sizes, biases in (
            (cpu_router, GROUPED, (False, True)),
            (grouped_topk, GROUPED, (False, True)),
            (fused_topk_bias, PLAIN, (True,)),
        )
        for bias in biases
        for spec in (SOFTMAX, SIGMOID, SOFTMAX | RAW | SCALE, SIGMOID | RAW, SIGMOID | SCALE)
    },
    "llama4": (llama4, PLAIN, False, SIGMOID | RAW),
    "cohere2": (cohere2, PLAIN, False, SIGMOID),
    "cohere2-raw": (cohere2, PLAIN, False, SIGMOID | RAW),
    "gemma4": (gemma4, PLAIN, False, SOFTMAX),
    "phimoe": (phimoe, TWO, False, RAW | {"scoring": "sparsemixer", "jitter": 0.01}),
}


def run_router(name, size, num_tokens):
    """(logits, spec, weights, ids) of this router on random logits and biases."""
    pytest.importorskip(f"{ROUTERS}.cpu_router", reason="needs a vllm with a CPU router (0.32)")
    router, _, bias, options = CASES[name]
    num_experts, top_k, *groups = size
    if options["scoring"] == "sqrtsoftplus" and not hasattr(torch.ops._C, "biased_topk_cpu"):
        pytest.skip("this vllm has no biased_topk_cpu (AVX-512)")
    torch.manual_seed(num_experts + num_tokens)
    logits_TE = torch.randn(num_tokens, num_experts) * 3
    rule = dict(options, groups=tuple(groups) or None, bias=torch.rand(num_experts) - 0.5 if bias else None)
    if router is gemma4:
        rule["expert_scale"] = torch.rand(num_experts) + 0.5
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, **rule)
    with torch.compiler.set_stance("force_eager"):  # some of them are decorated with torch.compile
        weights_TK, ids_TK = router(logits_TE.clone(), spec)
    return logits_TE, spec, weights_TK, ids_TK


@pytest.mark.parametrize("num_tokens", [1, 7, 64])
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, row in CASES.items() for size in row[1]], ids=str)
def test_select_is_vllms_router(name, size, num_tokens, assert_selects):
    assert_selects(*run_router(name, size, num_tokens))


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_the_spec_counts(name, assert_every_field_counts):
    assert_every_field_counts(*run_router(name, CASES[name][1][0], 64))
