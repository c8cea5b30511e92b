"""What carving cost: negative log-likelihood of held-out text, under the dense model and what was written."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lynx_moe.testbed.carve.texts import SHARES


@torch.inference_mode()
def losses(model: Any, ids_WT: Tensor) -> Tensor:
    """float64 [W]: mean negative log-likelihood of each window's tokens, all but its first, in nats."""
    found = []
    for ids in torch.split(ids_WT, 2):
        log_p = model(ids).logits[:, :-1].float().log_softmax(-1)
        found.append(-log_p.gather(-1, ids[:, 1:, None])[..., 0].double().mean(-1))
    return torch.cat(found)


def reload(folder: Path) -> Any:
    """The folder as stock transformers reads it, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def compare(dense_W: Tensor, carved_W: Tensor) -> dict[str, Any]:
    """Perplexities by kind of text (windows stand kind by kind, as `texts.windows` gives them), and what was lost in
    nats a token, with the standard error of the paired differences over windows."""
    lost_W, start, by_kind = carved_W - dense_W, 0, {}
    for kind, share in SHARES.items():
        part = slice(start, start := start + len(dense_W) * share // sum(SHARES.values()))
        by_kind[kind] = {"dense": _perplexity(dense_W[part]), "carved": _perplexity(carved_W[part])}
    return {
        "windows": len(dense_W),
        "perplexity": by_kind,
        "lost_nats": float(lost_W.mean()),
        "lost_nats_standard_error": float(lost_W.std() / len(lost_W) ** 0.5),
        "perplexity_ratio": math.exp(float(lost_W.mean())),
    }


def _perplexity(loss_W: Tensor) -> float:
    return math.exp(float(loss_W.mean()))
