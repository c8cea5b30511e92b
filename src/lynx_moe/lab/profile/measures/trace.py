"""What routers choose on decoded tokens: from one exact forward per batch, without changing anything.

L layers, N sequences in all, B in a batch, S steps of it, E experts, K = top_k.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lynx_moe.engines.transformers import apply
from lynx_moe.lab.profile.measures.forward import lay_out, log_probabilities
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.routing import RouterSpec, order_key, preference, scores

NO_LIMIT = 1 << 60


class Trace(NamedTuple):
    """Per batch: ids_BSLK (int64; rank 0 first) and confidence_SB (the favourite's share of all scores, the mean over
    layers); and the router's rule."""

    ids: list[Tensor]
    confidence: list[Tensor]
    spec: RouterSpec


def trace(model: Any, batches: Sequence[Batch]) -> Trace:
    """Raises ValueError for a model whose routers differ in their number of experts or in top_k."""
    run = apply(model, "vanilla")
    kinds = {(layer.spec.num_experts, layer.spec.top_k) for layer in run.layers}
    if len(kinds) > 1:
        raise ValueError(
            f"the routers differ, (experts, top_k) are {sorted(kinds)}: only models of one kind are profiled"
        )
    device = next(model.parameters()).device
    found = Trace([], [], run.layers[0].spec)
    for batch in batches:
        given, recorder = lay_out(batch, device), run.record(NO_LIMIT)
        run.rows = given.rows("decode")
        with run:
            log_probabilities(model, given)
        shape = (len(batch.members), batch.num_steps)
        ids, shares = [], []
        for number, layer in enumerate(run.layers):
            ((logits_TE, ids_TK, _),) = recorder.parts[number]
            logits_TE, ids_TK = (part[recorder.remap[0]].to(device) for part in (logits_TE, ids_TK))
            key_TK = order_key(*preference(logits_TE, layer.spec)).gather(-1, ids_TK.long())
            ids.append(ids_TK.long().gather(-1, key_TK.argsort(-1, descending=True)).cpu().view(*shape, -1))
            score_TE = scores(logits_TE, layer.spec)
            shares.append((score_TE.amax(-1) / score_TE.sum(-1)).cpu().view(shape))
        found.ids.append(torch.stack(ids, 2))
        found.confidence.append(torch.stack(shares).mean(0).T)
    return found


def used(ids: Tensor, num_experts: int) -> Tensor:
    """float32 [..., E]: how many of the K ids of each token are each expert, 0 or 1, from ids [..., K]."""
    return torch.zeros(*ids.shape[:-1], num_experts).scatter(-1, ids, 1.0)
