"""A tiny random model of every MoE architecture of causal language models that transformers 5.19 ships."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from lynx_moe.engines.transformers.cache import cache_in, cache_name

VOCAB, EXPERTS, TOP_K = 96, 8, 2
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "top_k_experts": TOP_K,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 0,
    "moe_layer_start_index": 0,
    "n_shared_experts": 1,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
GROUPS = {"n_group": 4, "topk_group": 2, "num_experts": 16, "num_local_experts": 16, "n_routed_experts": 16}
SPARSE = {"mlp_layer_types": ["sparse", "sparse"]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
INDEXER |= {"indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8}
DBRX = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
    "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
    "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": EXPERTS, "moe_top_k": TOP_K},
}
MAMBA = {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8}


class Architecture(NamedTuple):
    """`prefix`Config and `model`ForCausalLM of transformers; `config` goes before COMMON, `without` are left out."""

    prefix: str
    model: str
    config: dict[str, Any]
    without: tuple[str, ...]


def arch(prefix: str, model: str = "", without: tuple[str, ...] = (), **config: Any) -> Architecture:
    return Architecture(prefix, model or prefix.removesuffix("Text"), config, without)


ARCHITECTURES = {
    "afmoe": arch("Afmoe", num_dense_layers=0),
    "aria_text": arch("AriaText", "AriaText"),
    "axk1": arch("AXK1", **MLA, **GROUPS),
    "axk2": arch("AXK2", **MLA, **GROUPS),
    "cohere2_moe": arch("Cohere2Moe", **SPARSE),
    "dbrx": arch("Dbrx", without=tuple(COMMON.keys() - {"vocab_size"}), **DBRX),
    "deepseek_v2": arch("DeepseekV2", **MLA, **GROUPS, topk_method="group_limited_greedy"),
    "deepseek_v3": arch("DeepseekV3", **MLA, **GROUPS),
    "deepseek_v32": arch("DeepseekV32", **MLA, **GROUPS),
    "deepseek_v4": arch("DeepseekV4", mlp_layer_types=["hash_moe", "moe"], q_lora_rank=16),
    "dots1": arch("Dots1", **GROUPS),
    "ernie4_5_moe": arch("Ernie4_5_Moe"),
    "exaone_moe": arch("ExaoneMoe", **GROUPS, **SPARSE),
    "flex_olmo": arch("FlexOlmo"),
    "gemma4_text": arch(
        "Gemma4Text",
        enable_moe_block=True,
        hidden_size_per_layer_input=0,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "glm4_moe": arch("Glm4Moe", **GROUPS),
    "glm4_moe_lite": arch("Glm4MoeLite", **MLA, **GROUPS, **SPARSE),
    "glm_moe_dsa": arch("GlmMoeDsa", **MLA, **GROUPS, **SPARSE),
    "gpt_oss": arch("GptOss"),
    "granitemoe": arch("GraniteMoe"),
    "granitemoe_swa": arch("GraniteMoeSWA"),
    "granitemoehybrid": arch(
        "GraniteMoeHybrid",
        mamba_n_heads=4,
        mamba_d_state=8,
        mamba_chunk_size=8,
        shared_intermediate_size=16,
        layer_types=["mamba", "attention"],
    ),
    "granitemoeshared": arch("GraniteMoeShared"),
    "hunyuan_v1_moe": arch("HunYuanMoEV1"),
    "hy_v3": arch("HYV3", **SPARSE),
    "hy_v4": arch("HYV4", **GROUPS, **SPARSE),
    "jamba": arch(
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=1,
        expert_layer_offset=0,
        use_mamba_kernels=False,
        mamba_d_state=4,
    ),
    "jetmoe": arch("JetMoe"),
    "kimi_linear": arch(
        "KimiLinear",
        without=("head_dim",),
        **MLA,
        **GROUPS,
        **SPARSE,
        layer_types=["linear_attention", "full_attention"],
        linear_head_dim=16,
        linear_num_heads=2,
    ),
    "laguna": arch("Laguna", **SPARSE),
    "lfm2_moe": arch("Lfm2Moe", num_dense_layers=0, layer_types=["conv", "full_attention"]),
    "llama4_text": arch("Llama4Text", interleave_moe_layer_step=1),
    "longcat_flash": arch(
        "LongcatFlash", **MLA, zero_expert_num=0, num_layers=2, ffn_hidden_size=32, expert_ffn_hidden_size=16
    ),
    "mellum": arch("Mellum", **SPARSE),
    "mimo_v2_flash": arch(
        "MiMoV2Flash",
        **SPARSE,
        **GROUPS,
        num_attention_heads=4,
        v_head_dim=16,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "minimax": arch("MiniMax"),
    "minimax_m2": arch("MiniMaxM2"),
    "minimax_m3_vl_text": arch("MiniMaxM3VLText", **SPARSE),
    "mistral4": arch("Mistral4", without=("head_dim",), **MLA, **GROUPS),
    "mixtral": arch("Mixtral"),
    "nemotron_h": arch(
        "NemotronH",
        layers_block_type=["mamba", "moe", "attention", "moe"],
        moe_shared_expert_intermediate_size=16,
        use_mamba_kernels=False,
        **MAMBA,
        **GROUPS,
    ),
    "olmoe": arch("Olmoe"),
    "phimoe": arch("Phimoe", router_jitter_noise=0.2),
    "qwen2_moe": arch("Qwen2Moe"),
    "qwen3_5_moe_text": arch("Qwen3_5MoeText", **LINEAR),
    "qwen3_moe": arch("Qwen3Moe"),
    "qwen3_next": arch("Qwen3Next", **LINEAR),
    "qwen4_exp_text": arch("Qwen4ExpText", **LINEAR, **INDEXER),
    "solar_open": arch("SolarOpen", **GROUPS),
}
REFUSED = {  # and a word of the reason
    "doge": (arch("Doge", is_moe=True, num_experts=16), "product keys"),
    "inkling_text": (arch("InklingText"), "shared and routed experts together"),
    "longcat_flash-zero": (ARCHITECTURES["longcat_flash"]._replace(config={
        **ARCHITECTURES["longcat_flash"].config, "zero_expert_num": 2}), "zero experts"),
    "zaya": (arch("Zaya", num_experts_per_tok=1, router_hidden_size=8), "skip"),
}  # fmt: skip


def make(architecture: Architecture, **config: Any) -> Any:
    """The routers' logits have a standard deviation near 2, so that rows differ in their experts; selection biases and
    factors per expert are random too."""
    prefix, model, own, without = architecture
    common = {key: value for key, value in COMMON.items() if key not in without}
    torch.manual_seed(11)
    made = getattr(transformers, f"{model}ForCausalLM")(
        getattr(transformers, f"{prefix}Config")(**{**common, **own, **config})
    )
    with torch.no_grad():
        for name, weight in [*made.named_parameters(), *made.named_buffers()]:
            last = name.split(".")[-1]
            if last in ("e_score_correction_bias", "expert_bias"):
                weight.uniform_(0.0, 0.3)
            elif last == "per_expert_scale":
                weight.uniform_(0.5, 1.5)
            elif any(part in name for part in ("gate.weight", "router", "wg.weight")) and weight.dim() == 2:
                weight.normal_(std=2 * weight.shape[-1] ** -0.5)
    return made.eval()


def beside(model: Any, cache: Any) -> dict[str, Any]:
    """The argument that hands a cache to the model's forward, under its name in this transformers."""
    return {str(cache_name(model.forward)): cache}


def cache_of(output: Any) -> Any:
    return cache_in(output.values())


def moe_model_types() -> set[str]:
    """Model types of causal language models whose file defines experts or a router, by transformers' own tables."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    folder = Path(transformers.__file__).parent / "models"
    defines = re.compile(r"^class \w*(Experts|MoE|MOE|Moe|TopK\w*Router|TopkRouter|TopKGating)\(", re.MULTILINE)
    found = set()
    for kind in CAUSAL:
        module = model_type_to_module_name(kind)
        files = (folder / module).glob("modeling_*.py")
        composite = f"{kind}_text" in CAUSAL  # the same decoder inside a vision-language model
        if not composite and any(defines.search(file.read_text()) for file in files):
            found.add(kind)
    return found
