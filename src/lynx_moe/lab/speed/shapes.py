"""Published MoE layer shapes, as configurations that vLLM reads. `random_weights.py` fills them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lynx_moe.lab.speed.gates import DEEPSEEK_V2_LITE, QWEN3_30B, Gates, unpublished
from lynx_moe.lab.speed.quantization import quantization_config


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's published dimensions. The vocabulary is cut so that the output layer keeps its share of a step beside
    fewer layers."""

    title: str
    config: dict[str, Any]
    layers: int  # that fit in the memory of a small machine
    all_layers: int
    expert_mib: float
    gates: Gates


SHAPES = {
    "qwen3-30b": Shape(
        title="Qwen3-30B-A3B",
        layers=2,
        all_layers=48,
        expert_mib=3 * 2048 * 768 * 2 / 2**20,
        gates=QWEN3_30B,
        config={
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "rope_theta": 1000000.0,
        },
    ),
    "olmoe-1b-7b": Shape(
        title="OLMoE-1B-7B",
        layers=3,
        all_layers=16,
        expert_mib=3 * 2048 * 1024 * 2 / 2**20,
        gates=unpublished(1.29),
        config={
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
        },
    ),
    "deepseek-v2-lite": Shape(
        title="DeepSeek-V2-Lite",
        layers=2,
        all_layers=27,
        expert_mib=3 * 2048 * 1408 * 2 / 2**20,
        gates=DEEPSEEK_V2_LITE,
        config={
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 0,  # really 1 of 27 layers: beside two it would weigh too much
            "moe_layer_freq": 1,
            "norm_topk_prob": False,
            "scoring_func": "softmax",
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "rope_theta": 10000,
        },
    ),
    "mixtral-8x7b": Shape(
        title="Mixtral-8x7B",
        layers=1,
        all_layers=32,
        expert_mib=3 * 4096 * 14336 * 2 / 2**20,
        gates=unpublished(0.97),
        config={
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "rope_theta": 1000000.0,
        },
    ),
    "gpt-oss-20b": Shape(
        title="gpt-oss-20b",
        layers=2,
        all_layers=24,
        expert_mib=3 * 2880 * 2880 * 4.25 / 8 / 2**20,  # mxfp4: 4 bits, and 8 more for every 32 numbers
        gates=unpublished(1.2),
        config={
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "attention_bias": True,
            "rope_theta": 150000,
            "swiglu_limit": 7.0,
            "quantization_config": quantization_config("mxfp4", 24),
        },
    ),
}
_QWEN3 = SHAPES["qwen3-30b"]
SHAPES |= {
    f"qwen3-30b-{scheme}": replace(
        _QWEN3,
        title=f"Qwen3-30B-A3B ({scheme.upper()} experts)",
        expert_mib=_QWEN3.expert_mib * bits / 16,
        config={**_QWEN3.config, "quantization_config": quantization_config(scheme, _QWEN3.all_layers)},
    )
    for scheme, bits in (("w8a8", 8), ("fp8", 8), ("int4", 4.25))  # 4 bits, and 16 more for every 64 numbers
}
VOCABULARY = 8192
GATES = "lynx_moe_gates"


def tiny(shape: Shape) -> Shape:
    """The shape's architecture in a size that any machine runs at once; unquantised."""
    small = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 64, "head_dim": 64}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = {name: small.get(name, value) for name, value in shape.config.items() if name != "quantization_config"}
    return replace(shape, config=config, all_layers=2, title=f"tiny {shape.title}")


def num_experts(shape: Shape) -> int:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    return int(next(shape.config[name] for name in names if name in shape.config))


def write_config(shape: Shape, layers: int, folder: Path) -> Path:
    """A model folder with nothing but the shape's config.json; how its gates are to be drawn stands there too."""
    common = {
        GATES: {"std": shape.gates.std, "common": shape.gates.common},
        "vocab_size": VOCABULARY,
        "num_hidden_layers": layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps({**shape.config, **common}), encoding="utf-8")
    return folder
