"""A published layer shape as a checkpoint with random weights and a tokenizer, which a server can load as any other."""

from pathlib import Path

from lynx_moe.lab.speed.random_weights import fill_routing
from lynx_moe.lab.speed.shapes import GATES, SHAPES, VOCABULARY, write_config

TOKENIZER = "qwen3-moe"  # of the testbed; filled up to the shape's vocabulary


def is_shape(model: str) -> bool:
    return model in SHAPES


def folder(shape: str, path: Path) -> str:
    """The folder `path`/`shape`, written if it is not there yet: some GB.

    Raises ValueError for a shape with quantised experts, whose formats are not written, and without transformers.
    """
    if "quantization_config" in SHAPES[shape].config:
        raise ValueError(f"{shape} has quantised experts, which cannot be saved here; take its bfloat16 shape")
    made = path / shape
    if (made / "model.safetensors.index.json").exists() or (made / "model.safetensors").exists():
        return str(made)
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f"writing random weights needs transformers ({error}): pip install '.[transformers]'"
        ) from None
    from lynx_moe.testbed import path as testbed

    made.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.from_pretrained(write_config(SHAPES[shape], SHAPES[shape].layers, made))
    tokenizer = AutoTokenizer.from_pretrained(testbed(TOKENIZER))
    tokenizer.add_tokens([f"<{number}>" for number in range(len(tokenizer), VOCABULARY)])
    tokenizer.save_pretrained(made)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and name.endswith(("embed_tokens.weight", "gate.weight", "router.weight")):
                fill_routing(name, weight, getattr(config, GATES), rng)
    model.save_pretrained(made)
    return str(made)
