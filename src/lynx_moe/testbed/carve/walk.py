"""Layer after layer: each is carved by what comes out of the ones before it, as they were carved."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lynx_moe.testbed.carve.fit import Carved, Dense, carve

PART = 16  # windows at a time


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of every layer: neurons that stay with each token, experts, and how many of these a token gets."""

    num_shared: int = 512
    num_groups: int = 32
    top_k: int = 8


SMOLLM = Sizes()


@torch.inference_mode()
def carve_layers(model: Any, ids_WT: Tensor, sizes: Sizes, seed: int = 0) -> Iterator[Carved]:
    """The layers of a Llama, carved one by one by the windows of tokens ids [W, T]."""
    hidden_WTH = model.model.embed_tokens(ids_WT)
    angles = model.model.rotary_emb(hidden_WTH[:1], torch.arange(ids_WT.shape[1])[None])
    for number, layer in enumerate(model.model.layers):
        hidden_WTH = by_parts(lambda part: attended(layer, part, angles), hidden_WTH)  # noqa: B023
        input_WTH = by_parts(layer.post_attention_layernorm, hidden_WTH)
        mlp = layer.mlp
        dense = Dense(gate_FH=mlp.gate_proj.weight, up_FH=mlp.up_proj.weight, down_HF=mlp.down_proj.weight)
        made, output_NH = carve(dense, input_WTH.flatten(0, 1), **vars(sizes), seed=seed + number)
        hidden_WTH = hidden_WTH + output_NH.view_as(hidden_WTH)
        yield made


def attended(layer: Any, hidden_WTH: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """The hidden states after a layer's attention (causal) was added."""
    normed = layer.input_layernorm(hidden_WTH)
    added: Tensor = layer.self_attn(hidden_states=normed, position_embeddings=angles, attention_mask=None)[0]
    return hidden_WTH + added


def by_parts(function: Callable[[Tensor], Tensor], value_WTH: Tensor) -> Tensor:
    return torch.cat([function(part) for part in torch.split(value_WTH, PART)])
