"""A tokenizer and families small enough to train within a test."""

from dataclasses import replace

import pytest
from places import MODELS
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import FAMILIES, UNBALANCED, Family


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(MODELS / "tokenizer")


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 8,
}
SMALL_EXPERTS: dict[str, dict[str, int]] = {
    "mixtral": {"num_local_experts": 5},
    "qwen3-moe": {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 8},
    "olmoe": {"num_experts": 7, "num_experts_per_tok": 3},
    "deepseek-v3": {
        "n_routed_experts": 12,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 8,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "gpt-oss": {"num_local_experts": 7, "num_experts_per_tok": 3, "sliding_window": 8},
}


@pytest.fixture(params=FAMILIES)
def tiny_family(request: pytest.FixtureRequest) -> Family:
    """Every row of the table, each so small that six steps take a moment."""
    family = FAMILIES[request.param]
    small = SMALL | SMALL_EXPERTS[request.param.removesuffix(UNBALANCED)]
    head_dim = {"head_dim"} - family.config.keys()  # a size of its own only where the row has one
    config = {**family.config, **{key: size for key, size in small.items() if key not in head_dim}}
    return replace(family, config=config, batch_rows=3, row_length=64, num_tokens=6 * 3 * 64)


@pytest.fixture
def texts(tokenizer: PreTrainedTokenizerFast) -> list[list[list[int]]]:
    """A stand-in for the text corpus, whose reading takes half a minute."""
    kinds = [[f"{kind} text, number {i}. " * 20 for i in range(9)] for kind in ("An", "More")]
    return [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in kinds]
