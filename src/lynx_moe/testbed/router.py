"""What routers do on decode tokens: weights by rank, load, distinct experts per batch, and what denying experts costs.

A decode token is an answer token that is fed in, as a server would step through it. T of them, E experts, K per token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.data import encode_item
from lynx_moe.testbed.evaluate import exact_match, padded
from lynx_moe.testbed.tasks import Item

BATCH_SIZES = (2, 4, 8, 16, 32, 64)
DRAWS = 300


@torch.inference_mode()
def decode_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> list[Tensor]:
    """Router logits [T, E] of every layer on the decode tokens of `items`."""
    encoded = [encode_item(item, tokenizer) for item in items]
    found: list[list[Tensor]] = []
    done = 0
    for ids_BL in padded([ids for ids, _ in encoded], tokenizer.pad_token_id):
        decode_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
        for row, (ids, given) in enumerate(encoded[done : done + len(ids_BL)]):
            decode_BL[row, given : len(ids) - 1] = True
        done += len(ids_BL)
        layers = model.model(input_ids=ids_BL, use_cache=False, output_router_logits=True).router_logits
        found.append([logits.float()[decode_BL.flatten()] for logits in layers])
    return [torch.cat(chunks) for chunks in zip(*found, strict=True)]


def health(layers: Sequence[Tensor], top_k: int, seed: int = 0) -> dict[str, Any]:
    """Means over layers of the router's habits.

    top1_mass      softmax probability of the first choice, among all experts.
    weights        renormalised weight by rank, K numbers that sum to 1.
    load_entropy   entropy of the experts' load over log E: 1 when even.
    distinct       batch size -> experts a layer loads for that many decode tokens, drawn at random from all tasks.
    uniform        the same if every token drew its K experts uniformly: E (1 - (1 - K/E)^B).
    """
    num_experts = layers[0].shape[-1]
    top1, weights, entropy = [], [], []
    distinct: dict[int, list[int]] = {size: [] for size in BATCH_SIZES}
    rng = Random(seed)
    for logits_TE in layers:
        values_TK, ids_TK = logits_TE.topk(top_k)
        top1.append(logits_TE.softmax(-1).amax(-1).mean())
        weights.append(values_TK.softmax(-1).mean(0))
        load_E = torch.bincount(ids_TK.flatten(), minlength=num_experts) / ids_TK.numel()
        entropy.append(torch.special.entr(load_E).sum() / math.log(num_experts))
        for size in BATCH_SIZES:
            for _ in range(DRAWS):
                distinct[size].append(torch.unique(ids_TK[rng.sample(range(len(ids_TK)), size)]).numel())
    return {
        "num_tokens": len(layers[0]),
        "num_experts": num_experts,
        "top1_mass": torch.stack(top1).mean().item(),
        "weights": torch.stack(weights).mean(0).tolist(),
        "load_entropy": torch.stack(entropy).mean().item(),
        "distinct": {str(size): sum(counts) / len(counts) for size, counts in distinct.items()},
        "uniform": {str(size): num_experts * (1 - (1 - top_k / num_experts) ** size) for size in BATCH_SIZES},
    }


@contextmanager
def denied(model: PreTrainedModel, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, softmax routers that renormalise pass over the experts that `choose(logits_TE)` marks, [T, E].

    Every token is affected, prompts too. Raises ValueError for a model without such routers.
    """

    def hook(gate: torch.nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE, weights_TK, _ = output
        masked_TE = logits_TE.float().masked_fill(choose(logits_TE), -math.inf)
        values_TK, ids_TK = masked_TE.topk(weights_TK.shape[-1])
        return logits_TE, values_TK.softmax(-1).to(weights_TK.dtype), ids_TK

    gates = [m for m in model.modules() if getattr(m, "norm_topk_prob", False) and hasattr(m, "top_k")]
    if not gates:
        raise ValueError(f"{type(model).__name__} has no softmax router that renormalises (norm_topk_prob)")
    handles = [gate.register_forward_hook(hook) for gate in gates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rank(position: int) -> Callable[[Tensor], Tensor]:
    """Marks each token's own choice number `position`, 0 being its first."""

    def choose(logits_TE: Tensor) -> Tensor:
        ids_T1 = logits_TE.topk(position + 1).indices[:, position:]
        return torch.zeros_like(logits_TE, dtype=torch.bool).scatter(1, ids_T1, True)

    return choose


def random_half(seed: int) -> Callable[[Tensor], Tensor]:
    """Marks half of the experts, drawn anew for every layer and call, the same for all tokens of the call."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits_TE: Tensor) -> Tensor:
        num_experts = logits_TE.shape[-1]
        marked_E = torch.randperm(num_experts, generator=generator) < num_experts // 2
        return marked_E.expand_as(logits_TE)

    return choose


def cost_of_denying(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]
) -> dict[str, float]:
    """Exact match (a share of `items`) as trained, with single ranks denied, and with a random half of the experts."""
    last = model.config.num_experts_per_tok - 1
    choices = {f"rank {r} denied": rank(r) for r in (0, 1, last)} | {"random half denied": random_half(0)}
    result = {"as trained": sum(exact_match(model, tokenizer, items)) / len(items)}
    for name, choose in choices.items():
        with denied(model, choose):
            result[name] = sum(exact_match(model, tokenizer, items)) / len(items)
    return result
