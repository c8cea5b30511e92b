"""A tokenizer and a family small enough to train within a test."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lynx_moe.testbed.families import FAMILIES, Family

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(MODELS / "tokenizer")


@pytest.fixture
def tiny_family() -> Family:
    family = FAMILIES["qwen3-moe"]
    small = {"hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8, "num_experts": 7, "num_experts_per_tok": 3}
    return replace(family, config={**family.config, **small}, batch_rows=3, row_length=64, num_tokens=6 * 3 * 64)


@pytest.fixture
def texts(tokenizer: PreTrainedTokenizerFast) -> list[list[list[int]]]:
    """A stand-in for the text corpus, whose reading takes half a minute."""
    kinds = [[f"{kind} text, number {i}. " * 20 for i in range(9)] for kind in ("An", "More")]
    return [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in kinds]
