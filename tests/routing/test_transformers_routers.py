"""select() equals the routers of transformers' own model classes: same experts, same order, same weights."""

import importlib
from typing import Any, NamedTuple

import pytest
import torch

from lynx_moe.routing import RouterSpec, select

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

HIDDEN = 16
PLAIN = ((7, 3), (6, 1), (60, 4), (5, 5), (128, 8))  # (experts, top_k)
GROUPED = ((12, 5, 4, 2), (60, 7, 6, 2), (64, 6, 8, 3), (20, 4, 1, 1))  # and (n_group, topk_group)


def as_is(out, top_k):
    return out


def any_order(out, top_k):
    """Backwards until transformers 5.19 or so."""
    return out if out[0].is_floating_point() else out[::-1]


def dense_scores(out, top_k):
    return out[1], *out[0].topk(top_k)


def probabilities(out, top_k):
    return out[0].log(), *out[1:]


class Family(NamedTuple):
    """A router class, how to build it, how to read its output as (logits, weights, ids), the spec that describes it."""

    router: str
    config: str
    num_experts: str  # the config's word for it
    options: dict[str, Any]  # of the config
    spec: dict[str, Any]
    bias: tuple[float, float] | None  # selection biases are drawn from this interval
    sizes: tuple[tuple[int, ...], ...]
    ordered: bool  # False: the module asks topk for sorted=False
    read: Any


def family(router, config, num_experts, options=None, *, bias=None, sizes=PLAIN, ordered=True, read=as_is, **spec):
    return Family(router, config + "Config", num_experts, options or {}, spec, bias, sizes, ordered, read)


L, N, R = "num_local_experts", "num_experts", "n_routed_experts"
NORM, RAW, SCALE = {"norm_topk_prob": True}, {"norm_topk_prob": False}, {"routed_scaling_factor": 2.5}
V2 = SCALE | {"num_attention_heads": 2, "num_key_value_heads": 2}
V2_SPEC: dict[str, Any] = {"renormalize": False, "scale": 2.5, "ordered": False}
BIASED: dict[str, Any] = {"bias": (-0.5, 0.5), "ordered": False, "scoring": "sigmoid"}
V3_SPEC = BIASED | {"scale": 2.5, "sizes": GROUPED}
ZEROS: dict[str, Any] = {"bias": (0, 0), "scoring": "softmax"}

FAMILIES = {  # module name of the model, and a variant
    "mixtral": family("MixtralTopKRouter", "Mixtral", L),
    "qwen2_moe": family("Qwen2MoeTopKRouter", "Qwen2Moe", N, RAW, renormalize=False),
    "qwen2_moe-norm": family("Qwen2MoeTopKRouter", "Qwen2Moe", N, NORM),
    "qwen3_moe": family("Qwen3MoeTopKRouter", "Qwen3Moe", N, RAW, renormalize=False),
    "qwen3_moe-norm": family("Qwen3MoeTopKRouter", "Qwen3Moe", N, NORM),
    "olmoe": family("OlmoeTopKRouter", "Olmoe", N, RAW, renormalize=False),
    "olmoe-norm": family("OlmoeTopKRouter", "Olmoe", N, NORM),
    "granitemoe": family("GraniteMoeTopKRouter", "GraniteMoe", L, read=any_order),
    "gpt_oss": family("GptOssTopKRouter", "GptOss", L),
    # Llama 4: these scores multiply the expert's input, not its output.
    "llama4": family("Llama4Router", "Llama4Text", L, read=dense_scores, scoring="sigmoid", renormalize=False),
    "minimax_m2": family("MiniMaxM2TopKRouter", "MiniMaxM2", L, **BIASED),
    "ernie4_5_moe": family("Ernie4_5_MoeTopKRouter", "Ernie4_5_Moe", "moe_num_experts", bias=(-0.5, 0.5)),
    "longcat_flash": family(
        "LongcatFlashTopkRouter", "LongcatFlash", R, SCALE | {"zero_expert_num": 0}, bias=(-0.5, 0.5), **V2_SPEC
    ),
    # DeepSeek-V2 ignores its norm_topk_prob; masked groups get 0.0, which lies below every softmax score.
    "deepseek_v2": family("DeepseekV2TopkRouter", "DeepseekV2", R, V2 | {"topk_method": "greedy"}, **V2_SPEC),
    "deepseek_v2-groups": family(
        "DeepseekV2TopkRouter", "DeepseekV2", R, V2 | {"topk_method": "group_limited_greedy"}, sizes=GROUPED, **V2_SPEC
    ),
    "deepseek_v3": family("DeepseekV3TopkRouter", "DeepseekV3", R, SCALE | NORM, **V3_SPEC),
    "deepseek_v3-raw": family("DeepseekV3TopkRouter", "DeepseekV3", R, SCALE | RAW, renormalize=False, **V3_SPEC),
    "glm4_moe": family("Glm4MoeTopkRouter", "Glm4Moe", R, SCALE | NORM, **V3_SPEC),
    # Scores a group by its two best although there is no bias: a bias of zeros says so.
    "mistral4": family("Mistral4TopkRouter", "Mistral4", R, SCALE | NORM, **V3_SPEC | ZEROS),
    # Masked groups get 0.0 here too: equal as long as no biased score is negative.
    "axk2": family("AXK2TopkRouter", "AXK2", R, SCALE | NORM, **V3_SPEC | {"bias": (0, 0.5)}),
    # Each of the two choices has a weight of its own; with 0.4 about half of the experts take part in it.
    "phimoe": family(
        "PhimoeTopKRouter",
        "Phimoe",
        L,
        {"router_jitter_noise": 0.4},
        sizes=((7, 2), (60, 2), (2, 2)),
        scoring="sparsemixer",
        renormalize=False,
        jitter=0.4,
    ),
    "gemma4": family("Gemma4TextRouter", "Gemma4Text", N, sizes=((7, 3), (6, 1), (60, 4), (5, 5)), read=probabilities),
    "deepseek_v4": family(
        "DeepseekV4TopKRouter", "DeepseekV4", R, SCALE, **BIASED | {"scoring": "sqrtsoftplus", "scale": 2.5}
    ),
}
CASES = [(name, size) for name, row in FAMILIES.items() for size in row.sizes]


def run_router(name, size, num_tokens, dtype=torch.float32):
    """(logits, spec, weights, ids) of a tiny random router of this family on random hidden states."""
    row, module = FAMILIES[name], name.partition("-")[0]
    num_experts, top_k, *groups = size
    torch.manual_seed(num_experts + num_tokens)
    sizes = {row.num_experts: num_experts, "num_experts_per_tok": top_k, "top_k_experts": top_k, "hidden_size": HIDDEN}
    sizes |= dict(zip(("n_group", "topk_group"), groups, strict=False))
    module = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    router = getattr(module, row.router)(getattr(transformers, row.config)(**sizes, **row.options))
    bias_E = None if row.bias is None else torch.empty(num_experts).uniform_(*row.bias)
    for key, tensor in [*router.named_parameters(), *router.named_buffers()]:
        if key.endswith("e_score_correction_bias"):
            tensor.data.copy_(bias_E)
        else:  # logits with a standard deviation near 3
            tensor.data.copy_(torch.randn(tensor.shape) * (3 / HIDDEN**0.5 if tensor.dim() > 1 else 1))
    if name == "gemma4":
        router.scalar_root_size = 1.0  # it shrinks its input
    hidden = torch.randn(num_tokens, HIDDEN).to(dtype)
    router.to(dtype).eval()
    with torch.no_grad():
        out = router(hidden, bias_E) if name == "minimax_m2" else router(hidden)
    logits_TE, weights_TK, ids_TK = row.read(out, top_k)
    rule = {"bias": bias_E, "groups": tuple(groups) or None, "expert_scale": getattr(router, "per_expert_scale", None)}
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, **rule, **row.spec)
    return logits_TE, spec, weights_TK, ids_TK


@pytest.mark.parametrize("num_tokens", [1, 7, 64])
@pytest.mark.parametrize(("name", "size"), CASES, ids=str)
def test_select_is_the_models_router(name, size, num_tokens, assert_selects):
    logits_TE, spec, weights_TK, ids_TK = run_router(name, size, num_tokens)
    assert logits_TE.std() > 1
    assert_selects(logits_TE, spec, weights_TK, ids_TK, FAMILIES[name].ordered)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_the_spec_counts(name, assert_every_field_counts):
    assert_every_field_counts(*run_router(name, FAMILIES[name].sizes[0], 64))


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.bias is None and row.sizes is PLAIN])
def test_in_bfloat16_only_ties_are_broken_otherwise(name):
    """Many bfloat16 logits are equal and topk promises nothing about those: same values, maybe of other experts."""
    logits_TE, spec, weights_TK, ids_TK = run_router(name, (128, 8), 512, torch.bfloat16)
    ours = select(logits_TE, spec)
    chosen = [logits_TE.gather(1, ids).sort(-1).values for ids in (ours.ids, ids_TK)]
    assert torch.equal(*chosen)
    weights = [weights.float().sort(-1).values for weights in (ours.weights, weights_TK)]
    torch.testing.assert_close(*weights, rtol=2**-8 + 1e-5, atol=0)  # some routers round their weights to bfloat16
