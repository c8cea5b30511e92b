"""What decoding in lockstep takes beside the model, estimated before it begins.

Caches count most: a policy reads one of its own, of all sequences, which grows to the end of the batch. How large a
token is in it is measured on the model, since models keep keys, windows, latents or states. Sizes are bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lynx_moe.engines.transformers import apply
from lynx_moe.engines.transformers.cache import held_bytes
from lynx_moe.lab.fidelity.lockstep import fewest_logits, prefill
from lynx_moe.lab.shared.documents import Batch

LENGTHS = (8, 24)  # of the two prompts whose caches are measured
LOWER, RAISE = "lower --batch-sizes, --prefix or --steps", "take --dtype bfloat16, or raise --max-memory"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """fixed: of a sequence's cache, whatever its length; token: of each token in it; layer: the share of a cache that
    attention copies at a time, as it grows and as heads share keys; logits: of a row, with its log-probabilities;
    experts: what a row's experts take and a decision about them; every: whether a prompt gets logits of every token."""

    fixed: float
    token: float
    layer: float
    logits: int
    experts: int
    every: bool

    def need(self, batch: Batch, caches: int, together: int = 1, each: int = 1) -> dict[str, int]:
        """By name, for batches with so many caches of all their sequences, so many of these in one forward, and so many
        rows of each sequence in a step."""
        rows, width = len(batch.members), max(len(member.prefix) for member in batch.members)
        cache = rows * (self.fixed + self.token * (width + each * batch.num_steps + 1))
        held = {"caches": int(cache * (caches + together * self.layer))}
        step, prompt = (
            self.need_of_rows(rows * together * each, rows * together * each),
            self.need_of_rows(rows, rows * width),
        )
        return held | {name: max(size, prompt[name]) for name, size in step.items()}

    def need_of_rows(self, last: int, rows: int) -> dict[str, int]:
        """By name, of a forward over so many rows, `last` of which are the last of their sequences."""
        return {"logits": self.logits * (rows if self.every else last), "experts": self.experts * rows}


@torch.inference_mode()
def measured(model: Any) -> Sizes:
    """The sizes of a model. Raises ValueError where it keeps no cache."""
    config, device = model.config.get_text_config(), next(model.parameters()).device
    short, long = (held_bytes(prefill(model, *_prompt(length, device))) for length in LENGTHS)
    token = max(0.0, (long - short) / (LENGTHS[1] - LENGTHS[0]))
    heads = config.num_attention_heads / (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    specs = [layer.spec for layer in apply(model, "vanilla").layers]
    top_k, num_experts = max(spec.top_k for spec in specs), max(spec.num_experts for spec in specs)
    return Sizes(
        fixed=max(0.0, short - token * LENGTHS[0]),
        token=token,
        layer=(2 + heads) / config.num_hidden_layers,
        logits=12 * config.vocab_size,  # as the model's type, as float32, as log-probabilities
        # the oracle's inputs, outputs, these weighed, and as float64; and a decision's numbers by expert
        experts=24 * (top_k + 1) * config.hidden_size + 96 * num_experts,
        every=not fewest_logits(model),
    )


def largest(cut: Sequence[Batch], sizes: Sizes) -> Batch:
    """The batch of `cut` that takes most."""
    return max(cut, key=lambda batch: sum(sizes.need(batch, 2).values()))


def _prompt(length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BL = torch.ones(1, length, dtype=torch.long, device=device)
    return ids_BL, torch.ones_like(ids_BL)
