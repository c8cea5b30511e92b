"""One row per trained model: its architecture, and the settings of the recipe where a row may differ."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.configuration_utils import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build and train one model.

    num_tokens    training budget in tokens, prompts and text included.
    balance_coef  weight of the load-balancing loss, which is taken per layer and averaged.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    config: dict[str, Any]
    num_tokens: int
    seed: int = 0
    balance_coef: float = 0.01
    learning_rate: float = 4e-3
    batch_rows: int = 8
    row_length: int = 192

    @property
    def num_steps(self) -> int:
        """Optimizer steps that spend the token budget."""
        return max(1, self.num_tokens // (self.batch_rows * self.row_length))


# 64 fine experts, 8 of them per token: flat routers like the large models', where dropping an expert costs something.
_QWEN3 = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 32,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}

FAMILIES: dict[str, Family] = {
    "qwen3-moe": Family(
        config_class=Qwen3MoeConfig, model_class=Qwen3MoeForCausalLM, config=_QWEN3, num_tokens=18_432_000
    ),
}
