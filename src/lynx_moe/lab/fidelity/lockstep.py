"""Decoding in lockstep along the true continuation: what a policy does to every next token, beside the exact model.

All sequences of a batch are prefilled with the model's own routing; then each step feeds every one its next true token,
once exactly and once under each policy. B sequences, S steps, V entries of the vocabulary.

What a policy's cache holds decides what is measured. "own": what its own earlier steps wrote, as in serving; errors add
up. "exact": what the exact run wrote, so that each step shows its own damage alone.
"""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lynx_moe.engines.transformers import Run
from lynx_moe.engines.transformers.cache import cache_in, cache_name, repeat
from lynx_moe.lab.shared.documents import Batch

CACHES = ("own", "exact")


def nothing() -> None:
    """What is called after a step where nobody wants to know."""


class Effect(NamedTuple):
    """One policy on one batch, [S, B] each, float32: KL(exact || policy) in nats; 1 where both rank the same token
    first; what the true token's log-likelihood gained; and that log-likelihood under the exact model."""

    kl: Tensor
    agree: Tensor
    gain: Tensor
    exact: Tensor


@torch.inference_mode()
def decode(
    model: Any, batch: Batch, runs: Sequence[Run], cache: str, tick: Callable[[], None] = nothing
) -> list[Effect]:
    """The effect of each policy in `runs` (made by `apply`, not installed) on `batch`; they count their own experts.
    `tick` is called after every step.

    Raises ValueError for an unknown `cache`.
    """
    if cache not in CACHES:
        raise ValueError(f"cache={cache!r} is unknown; allowed: {', '.join(CACHES)}")
    device = next(model.parameters()).device
    ids_BL, mask_BL = left_padded([member.prefix for member in batch.members])
    rest_BS = torch.tensor([member.rest[: batch.num_steps + 1] for member in batch.members], device=device)
    ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
    exact = prefill(model, ids_BL, mask_BL)
    caches = [deepcopy(exact) for _ in runs]
    steps: list[list[tuple[Tensor, ...]]] = [[] for _ in runs]
    for step in range(batch.num_steps):
        mask_BL = F.pad(mask_BL, (0, 1), value=1)
        given = {
            "input_ids": rest_BS[:, step, None],
            "attention_mask": mask_BL,
            "position_ids": positions(mask_BL)[:, -1:],
        }
        before = [deepcopy(exact) for _ in runs] if cache == "exact" else caches
        truth_BV = step_of(model, given, exact)[:, 0]
        for run, own, found in zip(runs, before, steps, strict=True):
            with run:
                found.append(compare(truth_BV, step_of(model, given, own)[:, 0], rest_BS[:, step + 1]))
        tick()
    return [Effect(*map(torch.stack, zip(*found, strict=True))) for found in steps]


@torch.inference_mode()
def decode_together(
    model: Any,
    batch: Batch,
    run: Run,
    num: int,
    tick: Callable[[], None] = nothing,
    chances: Sequence[float] = (1.0,),
) -> list[Effect]:
    """As `decode` with cache "own", for many policies in one forward: the rows of `num` of them, side by side.

    run: of a policy that leaves the first rows to the exact model (`bakeoff.together`); the effects are of the others.
    chances: of each row that a sequence has in a step, that its token is committed. With more than one, a step verifies
    a draft of true tokens, all of which stay in the cache, and its effect is the mean over the rows by their chances.
    """
    device, rows = next(model.parameters()).device, len(chances)
    ids_BL, mask_BL = (part.to(device) for part in left_padded([member.prefix for member in batch.members]))
    rest_BS = torch.tensor([member.rest[: rows * batch.num_steps + 1] for member in batch.members], device=device)
    share_D = torch.tensor(chances, device=device) / sum(chances)
    cache = prefill(model, ids_BL, mask_BL)
    repeat(cache, len(ids_BL), num)
    steps: list[list[tuple[Tensor, ...]]] = [[] for _ in range(num - 1)]
    for place in range(0, rows * batch.num_steps, rows):
        mask_BL = F.pad(mask_BL, (0, rows), value=1)
        given = {"input_ids": rest_BS[:, place : place + rows], "position_ids": positions(mask_BL)[:, -rows:]}
        given = {name: part.repeat(num, 1) for name, part in (given | {"attention_mask": mask_BL}).items()}
        with run:
            truth_BDV, *found = step_of(model, given, cache).chunk(num)
        for kept, policy_BDV in zip(steps, found, strict=True):
            effect = compare(truth_BDV, policy_BDV, rest_BS[:, place + 1 : place + rows + 1])
            kept.append(tuple((each_BD * share_D).sum(-1) for each_BD in effect))
        tick()
    return [Effect(*map(torch.stack, zip(*kept, strict=True))) for kept in steps]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [B, L] each; padding has id 0, which nothing attends to."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def positions(mask_BL: Tensor) -> Tensor:
    """Every token's place in its own sequence, [B, L]; 0 for padding."""
    return (mask_BL.cumsum(-1) - 1).clamp(min=0)


def prefill(model: Any, ids_BL: Tensor, mask_BL: Tensor) -> Any:
    """The cache after a forward over prompts. Raises ValueError where the model keeps none."""
    given = {"attention_mask": mask_BL, "position_ids": positions(mask_BL)} | fewest_logits(model)
    cache = cache_in(model(ids_BL, **given, use_cache=True).values())
    if cache is None:
        raise ValueError(f"{type(model).__name__} returns no cache, so it cannot be decoded step by step")
    return cache


def fewest_logits(model: Any) -> dict[str, int]:
    """What a forward is told so that it makes logits of the last token alone; nothing where it cannot be told."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def step_of(model: Any, given: dict[str, Tensor], cache: Any) -> Tensor:
    """Log-probabilities [B, D, V] of what follows each of the D tokens that `given` holds, which the cache then holds
    too."""
    name = cache_name(model.forward)
    logits: Tensor = model(**given, **{str(name): cache}, use_cache=True).logits
    return logits.float().log_softmax(-1)


def compare(truth: Tensor, policy: Tensor, following: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Effect`, [...] each, from log-probabilities [..., V] and the true tokens' ids [...]."""
    kl = F.kl_div(policy, truth, reduction="none", log_target=True).sum(-1)
    agree = (truth.argmax(-1) == policy.argmax(-1)).float()
    exact, told = (each.gather(-1, following[..., None])[..., 0] for each in (truth, policy))
    return kl, agree, told - exact, exact
