"""A tiny random model with the testbed's tokenizer, of experts and dense; and documents of random tokens."""

from pathlib import Path

import torch
from places import MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig

from lynx_moe.lab.shared.documents import Document

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
         "intermediate_size": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
MOE = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 16, "norm_topk_prob": True}


def save_moe(path: Path) -> None:
    """Weights large enough that the routing matters."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "tokenizer")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(vocab_size=len(tokenizer), **SIZES, **MOE))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=2 * weight.shape[-1] ** -0.5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def save_dense(path: Path) -> None:
    Qwen3ForCausalLM(Qwen3Config(vocab_size=1280, **SIZES)).save_pretrained(path)
    AutoTokenizer.from_pretrained(MODELS / "tokenizer").save_pretrained(path)


def documents(num: int, steps: int = 6) -> list[Document]:
    torch.manual_seed(num)
    widths = torch.randint(1, 9, (num,)).tolist()
    draw = lambda n: tuple(torch.randint(3, 1000, (n,)).tolist())  # noqa: E731
    return [Document("ab"[number % 2], draw(width), draw(steps + 1)) for number, width in enumerate(widths)]
