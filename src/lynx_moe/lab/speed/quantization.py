"""What a checkpoint's config.json says of quantised experts (`quantization_config`), by scheme.

Experts only: attention, router, embeddings and output layer stay bfloat16.
"""

from typing import Any

GROUP = 64  # inputs that share a scale in INT4, if nothing else is said
BLOCK = 128  # rows and columns that share a scale in FP8


def quantization_config(scheme: str, layers: int, group: int = GROUP) -> dict[str, Any]:
    """The scheme's for a model of so many layers. Raises KeyError for a scheme that is not in the table below."""
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + ["mlp.gate"]
    exact = [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head", *exact]}
    int4 = {"bits": 4, "group_size": group}
    schemes: dict[str, dict[str, Any]] = {
        # 8-bit integers: a scale per output channel; activations, too, are quantised, per token
        "w8a8": _compressed("int", {"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "token"}),
        # 4-bit integers: a scale per group of inputs
        "int4": _compressed("pack", {"num_bits": 4, "strategy": "group", "group_size": group}, None),
        # the same numbers in AutoGPTQ's format
        "gptq": {
            "quant_method": "gptq",
            **int4,
            "desc_act": False,
            "sym": True,
            "dynamic": {"-:.*self_attn.*": {}, "-:.*gate$": {}},
        },
        # 4-bit integers in AutoAWQ's format: a scale and a zero point per group of inputs
        "awq": {
            "quant_method": "awq",
            **int4,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["self_attn", "gate"],
        },
        # 8-bit floats (e4m3): a scale per BLOCK x BLOCK weights, or one per matrix
        "fp8": {**fp8, "weight_block_size": [BLOCK, BLOCK]},
        "fp8-tensor": fp8,
        # 4-bit floats (e2m1), a power of two per 32 inputs: gpt-oss's own format
        "mxfp4": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    }
    return schemes[scheme]


def _compressed(form: str, weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """In the format of compressed-tensors."""
    common = {"type": "int", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{form}-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
        "config_groups": {
            "experts": {
                "targets": ["Linear"],
                "weights": {**common, "dynamic": False, **weights},
                "input_activations": activations and {**common, "dynamic": True, **activations},
            }
        },
    }
