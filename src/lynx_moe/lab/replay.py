"""Policies on a recording, without the model: which experts they load, and what they keep of the router's intent.

S steps of T rows each, E experts, K = top_k. Steps of equally many rows are decided together (`torch.vmap` over the
policy's plain-torch definition), which makes a setting cost milliseconds.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lynx_moe.lab.recording import Recorded, Recording
from lynx_moe.policies import ModelShape, Policy, make_policy
from lynx_moe.routing import Routing, Rows, loaded, scores

CHUNK = 256


def replay(recording: Recording, policies: Sequence[str | Policy]) -> list[dict[str, Any]]:
    """A line per policy, means over layers and steps, or over the rows that it may remap:

    before, after  distinct experts of a layer and step, by the model's own routing and by the policy's.
    mass           router scores of the experts that a row got, as a share of those that it asked for.
    overlap        share of a row's own experts that it got.
    changed        share of rows that got other experts than they asked for.

    Raises ValueError for a bad policy, or a knob that does not fit the recorded router.
    """
    return [_replay(recording, make_policy(policy) if isinstance(policy, str) else policy) for policy in policies]


def routings(recording: Recording, policy: Policy, layer: int) -> Tensor:
    """The ids [N, K] that `policy` gives all rows of a layer."""
    recorded = recording.layers[layer]
    ids_NK = recorded.own.ids.clone()
    for rows_ST in _alike(recording.rows):
        ids_NK[rows_ST] = _decide(policy, recorded, rows_ST, recording.remap)
    return ids_NK


def _replay(recording: Recording, policy: Policy) -> dict[str, Any]:
    first = recording.layers[0].spec
    policy = policy.for_model(ModelShape(**recording.facts["shape"]))
    sums = torch.zeros(5, dtype=torch.float64)
    groups = _alike(recording.rows)
    remap_N = recording.remap
    for layer in recording.layers:
        policy.check(layer.spec)
        score_NE = scores(layer.logits, layer.spec)
        asked_N = score_NE.gather(1, layer.own.ids).sum(-1)
        for rows_ST in groups:
            own_STK = layer.own.ids[rows_ST]
            ids_STK = _decide(policy, layer, rows_ST, remap_N)
            for column, choice in enumerate((own_STK, ids_STK)):
                sums[column] += torch.vmap(lambda ids: loaded(ids, first.num_experts, None))(choice).sum()
            voters_ST = remap_N[rows_ST]
            got_ST = score_NE[rows_ST].gather(2, ids_STK).sum(-1) / asked_N[rows_ST].clamp(min=1e-20)
            same_ST = (ids_STK[..., None] == own_STK[..., None, :]).any(-1).double().mean(-1)
            sums[2] += got_ST[voters_ST].double().sum()
            sums[3] += same_ST[voters_ST].sum()
            sums[4] += (same_ST[voters_ST] < 1).sum()
    steps, rows = len(recording.rows) * len(recording.layers), int(remap_N.sum()) * len(recording.layers)
    before, after, mass, overlap, changed = sums.tolist()
    line = {"policy": policy.spec, "before": before / steps, "after": after / steps}
    return line | {"mass": mass / rows, "overlap": overlap / rows, "changed": changed / rows}


def _decide(policy: Policy, layer: Recorded, rows_ST: Tensor, remap_N: Tensor) -> Tensor:
    """The policy's ids [S, T, K] for the rows of steps that all have T rows."""
    if policy.is_identity:
        return layer.own.ids[rows_ST]

    def one(logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor, remap_T: Tensor) -> Tensor:
        return policy.route(logits_TE, layer.spec, Rows(remap=remap_T), Routing(ids_TK, weights_TK)).ids

    parts = (layer.logits.float(), layer.own.ids, layer.own.weights, remap_N)
    chunks = [torch.vmap(one)(*(part[rows] for part in parts)) for rows in rows_ST.split(CHUNK)]
    return torch.cat(chunks)


def _alike(rows_S: Tensor) -> list[Tensor]:
    """For each number T of rows that steps have: the places [S, T] of their rows among all N."""
    starts_S = rows_S.cumsum(0) - rows_S
    return [starts_S[rows_S == size].long()[:, None] + torch.arange(size) for size in rows_S.unique().tolist()]
