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

from lynx_moe.testbed.model.families import family_of
from lynx_moe.testbed.tasks import Item
from lynx_moe.testbed.training.data import encode_item
from lynx_moe.testbed.training.evaluate import BATCH_ROWS, exact_match, padded
from lynx_moe.testbed.training.loss import Routed, recorded

BATCH_SIZES = (2, 4, 8, 16, 32, 64)
DRAWS = 300


def decode_routes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> list[Routed]:
    """What every layer's router returns on the decode tokens of `items`."""
    return routes(model, [encode_item(item, tokenizer) for item in items], tokenizer.pad_token_id)


@torch.inference_mode()
def routes(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], int]], pad: int, num_rows: int = BATCH_ROWS
) -> list[Routed]:
    """What every layer's router returns on the tokens of each sequence from a place on, without the last one."""
    gates = family_of(model).gates(model)
    found: list[list[Routed]] = []
    done = 0
    for ids_BL in padded([ids for ids, _ in encoded], pad, num_rows):
        decode_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
        for row, (ids, given) in enumerate(encoded[done : done + len(ids_BL)]):
            decode_BL[row, given : len(ids) - 1] = True
        done += len(ids_BL)
        with recorded(gates) as calls:
            model.model(input_ids=ids_BL, use_cache=False)
        found.append([Routed(*(part[decode_BL.flatten()] for part in call)) for call in calls])
    return [Routed(*map(torch.cat, zip(*layer, strict=True))) for layer in zip(*found, strict=True)]


def health(layers: Sequence[Routed], score: Callable[[Tensor], Tensor], seed: int = 0) -> dict[str, Any]:
    """Means over layers of the router's habits; `score` is the family's.

    top1_mass      the largest score's share of all experts' scores: softmax's own probability.
    chosen_mass    the same for all K chosen ones.
    weights        renormalised weight by rank, K numbers that sum to 1.
    load_entropy   entropy of the experts' load over log E: 1 when even.
    unused         experts that get less than a tenth of an even load.
    distinct       batch size -> experts a layer loads for that many decode tokens, drawn at random from all tasks.
    uniform        the same if every token drew its K experts uniformly: E (1 - (1 - K/E)^B).
    """
    num_experts, top_k = layers[0].logits_TE.shape[-1], layers[0].ids_TK.shape[-1]
    top1, chosen, weights, entropy, unused = [], [], [], [], 0.0
    distinct: dict[int, list[int]] = {size: [] for size in BATCH_SIZES}
    rng = Random(seed)
    for layer in layers:
        scores_TE = score(layer.logits_TE)
        shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
        top1.append(shares_TE.amax(-1).mean())
        chosen.append(shares_TE.gather(1, layer.ids_TK).sum(-1).mean())
        weights_TK = layer.weights_TK.float().sort(-1, descending=True).values
        weights.append((weights_TK / weights_TK.sum(-1, keepdim=True)).mean(0))
        load_E = layer.load_E / layer.ids_TK.numel()
        entropy.append(torch.special.entr(load_E).sum() / math.log(num_experts))
        unused += (load_E < 0.1 / num_experts).sum().item() / len(layers)
        for size in BATCH_SIZES:
            for _ in range(DRAWS):
                rows = rng.sample(range(len(layer.ids_TK)), size)
                distinct[size].append(torch.unique(layer.ids_TK[rows]).numel())
    return {
        "num_tokens": len(layers[0].ids_TK),
        "num_layers": len(layers),
        "num_experts": num_experts,
        "top1_mass": torch.stack(top1).mean().item(),
        "chosen_mass": torch.stack(chosen).mean().item(),
        "weights": torch.stack(weights).mean(0).tolist(),
        "load_entropy": torch.stack(entropy).mean().item(),
        "unused": unused,
        "distinct": {str(size): sum(counts) / len(counts) for size, counts in distinct.items()},
        "uniform": {str(size): num_experts * (1 - (1 - top_k / num_experts) ** size) for size in BATCH_SIZES},
    }


@contextmanager
def denied(model: PreTrainedModel, choose: Callable[[Routed], Tensor]) -> Iterator[None]:
    """Inside the block, routers pass over the experts that `choose` marks, [T, E], given what they would return.

    Every token is affected, prompts too. Raises ValueError for a model of no family.
    """
    family = family_of(model)

    def hook(gate: torch.nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        routed = Routed(*output)
        weights_TK, ids_TK = family.select(gate, routed.logits_TE, choose(routed))
        return routed.logits_TE, weights_TK.to(routed.weights_TK.dtype), ids_TK

    handles = [gate.register_forward_hook(hook) for gate in family.gates(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rank(position: int) -> Callable[[Routed], Tensor]:
    """Marks each token's own choice number `position` by weight, 0 being its first."""

    def choose(routed: Routed) -> Tensor:
        places_T1 = routed.weights_TK.argsort(dim=-1, descending=True, stable=True)[:, position, None]
        marked_TE = torch.zeros_like(routed.logits_TE, dtype=torch.bool)
        return marked_TE.scatter(1, routed.ids_TK.gather(1, places_T1), True)

    return choose


def random_half(seed: int) -> Callable[[Routed], Tensor]:
    """Marks half of the experts, drawn anew for every layer and call, the same for all tokens of the call."""
    generator = torch.Generator().manual_seed(seed)

    def choose(routed: Routed) -> Tensor:
        num_experts = routed.logits_TE.shape[-1]
        marked_E = torch.randperm(num_experts, generator=generator) < num_experts // 2
        return marked_E.expand_as(routed.logits_TE)

    return choose


def cost_of_denying(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]
) -> dict[str, float]:
    """Exact match (a share of `items`) as trained, with single ranks denied, and with a random half of the experts."""
    last = model.config.num_experts_per_tok - 1
    choices = {f"rank {r} denied": rank(r) for r in sorted({0, 1, last})} | {"random half denied": random_half(0)}
    result = {"as trained": sum(exact_match(model, tokenizer, items)) / len(items)}
    for name, choose in choices.items():
        with denied(model, choose):
            result[name] = sum(exact_match(model, tokenizer, items)) / len(items)
    return result
