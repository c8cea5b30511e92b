"""The layer: from the model's hidden state and the next token to the token after that (DeepSeek-V3, arXiv:2412.19437).

B rows of L tokens, H hidden width, E experts. At position p the layer sees token p + 1 and predicts token p + 2; where
it goes on by itself, its own last state stands in for the model's.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

FILE = "mtp.safetensors"


class Predictor(nn.Module):
    """Starts as the model's own last layer behind a projection that adds the next token to the hidden state. Embeddings
    and head are the model's, as they are."""

    def __init__(self, target: PreTrainedModel) -> None:
        super().__init__()
        config: Any = target.config
        size = config.hidden_size
        self.enorm, self.hnorm, self.norm = (DeepseekV3RMSNorm(size, config.rms_norm_eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.block = DeepseekV3DecoderLayer(config, config.num_hidden_layers)
        with torch.no_grad():
            self.eh_proj.weight.copy_(torch.eye(size).repeat(1, 2))
        self.block.load_state_dict(target.model.layers[-1].state_dict())
        self.norm.load_state_dict(target.model.norm.state_dict())

    def forward(self, next_BLH: Tensor, hidden_BLH: Tensor, positions_BL: Tensor, **given: Any) -> Tensor:
        """The state that the head reads, [B, L, H], and that the next depth goes on from. next_BLH: embedded tokens;
        as vLLM has it, none is seen at position 0. given: mask, cache and rotation of the block's attention."""
        seen_BLH = self.enorm(next_BLH.masked_fill(positions_BL[..., None] == 0, 0.0))
        joined = self.eh_proj(torch.cat((seen_BLH, self.hnorm(hidden_BLH)), -1))
        found: Tensor = self.norm(self.block(joined, position_ids=positions_BL, **given))
        return found

    def save(self, target: PreTrainedModel, folder: Path) -> None:
        """`FILE` in the model's folder, in bfloat16 (the selection bias in float32), under the names that DeepSeek's
        checkpoints have; they repeat embeddings and head."""
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("block.")}
        own["shared_head.norm.weight"] = own.pop("norm.weight")
        own["shared_head.head.weight"] = target.get_output_embeddings().weight
        own["embed_tokens.weight"] = target.get_input_embeddings().weight
        for name, value in self.block.state_dict().items():
            own |= _one_by_one(name, value) if ".experts." in name else {name: value}
        prefix = f"model.layers.{target.config.num_hidden_layers}."
        kinds = {name: value.dtype if name.endswith("_bias") else torch.bfloat16 for name, value in own.items()}
        save_file(
            {prefix + name: value.detach().to(kinds[name]).contiguous().clone() for name, value in own.items()},
            folder / FILE,
        )


def _one_by_one(name: str, fused: Tensor) -> dict[str, Tensor]:
    """transformers holds all experts of a layer in one tensor, checkpoints name each."""
    before, _, kind = name.rpartition(".")
    parts = {"gate_proj": fused.chunk(2, 1)[0], "up_proj": fused.chunk(2, 1)[1]}
    parts = parts if kind == "gate_up_proj" else {"down_proj": fused}
    return {f"{before}.{e}.{part}.weight": of[e] for part, of in parts.items() for e in range(len(fused))}
