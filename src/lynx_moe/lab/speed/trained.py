"""A trained model in place of a published shape: its own routes, on prompts that it was made for."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lynx_moe.lab.shared.documents import from_file, from_testbed
from lynx_moe.lab.shared.engine import open_engine
from lynx_moe.policies import ModelShape

Draw = Callable[[int, random.Random], list[list[int]]]
DOCUMENTS = 200  # that prompts are drawn from
MAX_TOKENS = 512  # of a request


def open_trained(model: str, max_num_seqs: int, **options: Any) -> Any:
    """An eager engine on a trained model, in bfloat16; more of vLLM's own options."""
    return open_engine(
        model,
        enforce_eager=True,
        enable_prefix_caching=False,
        dtype="bfloat16",
        max_model_len=MAX_TOKENS,
        max_num_seqs=max_num_seqs,
        **options,
    )


def drawing(tokenizer: Any, data: str, prompt_tokens: int, new_tokens: int) -> Draw:
    """What draws the prompts of a batch: different documents of the testbed's exercises ("testbed") or of a file, of
    which `prompt_tokens` are taken. Raises ValueError for a file that holds nothing of use, and larger batches than it
    has documents."""
    if data == "testbed":
        found = from_testbed(tokenizer, DOCUMENTS, seed=0)
    else:
        found = from_file(Path(data), tokenizer, DOCUMENTS, prompt_tokens, new_tokens)

    def draw(batch: int, rng: random.Random) -> list[list[int]]:
        if batch > len(found):
            raise ValueError(f"batches of {batch} need as many documents, and {data} has {len(found)} of use")
        return [list(document.prefix) for document in rng.sample(found, batch)]

    return draw


def about(model: str, shape: ModelShape) -> dict[str, Any]:
    """What a record says of it."""
    return {
        "model": f"{Path(model).name}, {shape.num_layers} layers, trained, bfloat16, eager",
        "gates": "its own",
        "num_experts": shape.num_experts,
        "top_k": shape.top_k,
        "layers": shape.num_layers,
    }
