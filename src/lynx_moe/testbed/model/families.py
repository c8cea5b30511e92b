"""One row per trained model: its architecture, and the settings of the recipe where a row may differ."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.configuration_utils import PreTrainedConfig

from lynx_moe.testbed.model import packing, selection

UNBALANCED = "-unbalanced"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build and train one model.

    gate          what the module that routes is called within a layer; it returns logits, weights and ids. Empty for a
                  dense model, which routes nothing.
    score         logits to the experts' scores, of which the weights are made.
    select        weights and ids from logits when some experts are denied; without any, what the gate itself returns.
    mask          the attention mask that keeps packed documents apart, given the model and the positions.
    num_tokens    training budget in tokens, prompts and text included.
    sharp         projections to queries and keys that start large and learn slowly (`optimizers.py` says why).
    balance_coef  weight of the load-balancing loss, which is taken per layer and averaged; 0 for none.
    flat_until    share of the budget from which on the learning rate falls.
    micro_rows    rows that go through the model at once; 0 for all of a worker's.
    bias_rate     what the selection bias of a router that has one moves per step towards an even load; 0 for never.
    """

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    config: dict[str, Any]
    gate: str = "mlp.gate"
    score: Callable[[Tensor], Tensor] = selection.softmax
    select: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]] = selection.by_softmax
    mask: Callable[[PreTrainedModel, Tensor], Any] = packing.from_positions
    sharp: tuple[str, ...] = ()
    num_tokens: int = 6_144_000
    seed: int = 0
    balance_coef: float = 0.0003
    bias_rate: float = 0.0
    learning_rate: float = 4e-3
    batch_rows: int = 8
    row_length: int = 192
    flat_until: float = 0.6
    micro_rows: int = 0

    @property
    def num_steps(self) -> int:
        """Optimizer steps that spend the token budget."""
        return max(1, self.num_tokens // (self.batch_rows * self.row_length))

    def build_config(self, **special: Any) -> PreTrainedConfig:
        """The configuration; all classes with a `gate` know `num_local_experts` and `num_experts_per_tok`."""
        return self.config_class(**{**_COMMON, **self.config, **special})

    def gates(self, model: PreTrainedModel) -> list[nn.Module]:
        """The routers of `model`, first layer first; none in a dense one."""
        return [module for name, module in model.named_modules() if self.gate and name.endswith(self.gate)]

    def sharp_weights(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The weights of all layers' `sharp` projections."""
        found = [m for name, m in model.named_modules() if name.rpartition(".")[2] in self.sharp]
        return [module.get_parameter("weight") for module in found]


_COMMON = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}

# 8 coarse experts, 2 of them per token.
_MIXTRAL = {"num_key_value_heads": 2, "intermediate_size": 256, "num_local_experts": 8, "num_experts_per_tok": 2}

# 64 fine experts, 8 of them per token: flat routers like the large models', where dropping an expert costs something.
_QWEN3 = {
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 32,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}

# As many, but their weights do not sum to 1.
_OLMOE = {
    "num_key_value_heads": 4,
    "intermediate_size": 32,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}

_PLAIN_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 1.0,
    "original_max_position_embeddings": 1024,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

# A dense first layer, then 64 experts in 8 groups, of which each token may use 4, and a shared one. The latent
# attention has the sizes that vLLM's CPU kernel takes. YaRN by a factor of 1 is plain RoPE, and what vLLM 0.32 computes
# rightly on CPUs: with `default` its log-probabilities were 1 to 4 nats off transformers', with this 1e-6. The last two
# words are for vLLM, which else loads no bias.
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "rope_parameters": _PLAIN_YARN,
    "intermediate_size": 256,
    "moe_intermediate_size": 32,
    "n_routed_experts": 64,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}

# 32 experts with biases, 4 of them per token; every other layer sees the last 32 tokens only.
_GPT_OSS = {
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 32,
    "max_position_embeddings": 131_072,
}

# Half as deep as the families, a sixth of their parameters.
_DRAFT = {"num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 256}

BALANCED: dict[str, Family] = {
    "mixtral": Family(config_class=MixtralConfig, model_class=MixtralForCausalLM, config=_MIXTRAL),
    "qwen3-moe": Family(config_class=Qwen3MoeConfig, model_class=Qwen3MoeForCausalLM, config=_QWEN3),
    "olmoe": Family(config_class=OlmoeConfig, model_class=OlmoeForCausalLM, config=_OLMOE),
    "deepseek-v3": Family(
        config_class=DeepseekV3Config,
        model_class=DeepseekV3ForCausalLM,
        config=_DEEPSEEK,
        score=selection.sigmoid,
        select=selection.by_biased_groups,
        balance_coef=0.0,
        bias_rate=0.001,
    ),
    "gpt-oss": Family(
        config_class=GptOssConfig,
        model_class=GptOssForCausalLM,
        config=_GPT_OSS,
        gate="mlp.router",
        mask=packing.by_layer_type,
        sharp=("q_proj", "k_proj"),
    ),
}

# The same seed, the same data, nothing that evens out the load.
FAMILIES: dict[str, Family] = BALANCED | {
    name + UNBALANCED: replace(row, balance_coef=0.0, bias_rate=0.0) for name, row in BALANCED.items()
}

# Dense, and small enough to guess ahead. One drafts for every family, since they share the tokenizer and the exercises.
DRAFTS: dict[str, Family] = {
    "draft": Family(config_class=Qwen3Config, model_class=Qwen3ForCausalLM, config=_DRAFT, gate="", balance_coef=0.0),
}

TRAINED = FAMILIES | DRAFTS


def family_of(model: PreTrainedModel) -> Family:
    """The balanced row of the model's class; raises ValueError for a class that has none."""
    rows = {row.model_class: row for row in BALANCED.values()}
    if type(model) not in rows:
        known = ", ".join(model_class.__name__ for model_class in rows)
        raise ValueError(f"{type(model).__name__} is of no family of the testbed; they are {known}")
    return rows[type(model)]
