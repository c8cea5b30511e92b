"""The carved layers as a stock Qwen2-MoE folder, which transformers and vLLM read without a change.

Qwen2-MoE multiplies its shared expert by the sigmoid of a gate: a gate of zeros gives 1/2, so the shared `down` is
doubled. Its weights of the K chosen experts sum to 1, ours to K, so the experts' `down` is multiplied by K. Both are
exact in bfloat16 where K is a power of two. Query, key and value biases, which vLLM's Qwen2-MoE always has, are zeros.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_moe.testbed.carve.fit import Carved

COPIED = (  # of the dense model's configuration
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "max_position_embeddings",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def as_qwen2_moe(dense: Any, layers: Sequence[Carved]) -> Any:
    """The model in float32; what was not carved is the dense Llama's own."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    first = layers[0]
    num_experts = len(first.router_GH)
    config = Qwen2MoeConfig(
        **{name: getattr(dense.config, name) for name in COPIED},
        num_experts=num_experts,
        num_experts_per_tok=first.top_k,
        moe_intermediate_size=(len(first.neuron_F) - first.num_shared) // num_experts,
        shared_expert_intermediate_size=first.num_shared,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        qkv_bias=True,
    )
    model = Qwen2MoeForCausalLM(config).eval()
    tensors = {name: value for name, value in dense.state_dict().items() if ".mlp." not in name}
    for name, value in model.state_dict().items():
        if name.endswith("proj.bias"):
            tensors[name] = torch.zeros_like(value)
    for number, layer in enumerate(layers):
        tensors |= {f"model.layers.{number}.mlp.{name}": value for name, value in _tensors(layer).items()}
    model.load_state_dict(tensors)
    return model


def _tensors(layer: Carved) -> dict[str, Tensor]:
    """The block's parameters by their names in transformers; experts stacked, [G, 2M, H] and [G, H, M]."""
    dense, shared, num_groups = layer.dense, layer.num_shared, len(layer.router_GH)

    def stacked(weight_RH: Tensor) -> Tensor:
        return weight_RH.reshape(num_groups, -1, weight_RH.shape[1])

    return {
        "gate.weight": layer.router_GH,
        "experts.gate_up_proj": torch.cat([stacked(dense.gate_FH[shared:]), stacked(dense.up_FH[shared:])], 1),
        "experts.down_proj": stacked(dense.down_HF[:, shared:].T).mT * layer.top_k,
        "shared_expert.gate_proj.weight": dense.gate_FH[:shared],
        "shared_expert.up_proj.weight": dense.up_FH[:shared],
        "shared_expert.down_proj.weight": dense.down_HF[:, :shared] * 2,
        "shared_expert_gate.weight": torch.zeros(1, len(dense.down_HF)),
    }


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights in bfloat16, configuration and tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
