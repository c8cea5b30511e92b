"""Policies that know which experts a cache holds: decided step after step, since what a step uses is there in the next.

N rows, E experts, K = top_k.
"""

from collections.abc import Sequence

import torch

from lynx_moe.engines.disk.slots import HELD
from lynx_moe.lab.replay.cache import Cache
from lynx_moe.lab.replay.recording import Recorded, Recording
from lynx_moe.policies import Policy
from lynx_moe.routing import Routing, Rows, loaded


def decided(recording: Recording, by_layer: Sequence[Policy], slots: int) -> list[Routing]:
    """The routing [N, K] of every layer, through a cache of `slots` experts each, empty at first. Rows that may not be
    changed keep theirs."""
    pairs = zip(recording.layers, by_layer, strict=True)
    return [_of_layer(recording, layer, policy, slots) for layer, policy in pairs]


def _of_layer(recording: Recording, layer: Recorded, policy: Policy, slots: int) -> Routing:
    cache, start = Cache(1, layer.spec.num_experts, slots), 0
    found = []
    for size in recording.rows.tolist():
        rows = slice(start, start := start + size)
        told = Rows(remap=recording.remap[rows], load_cost_E=torch.where(cache.held()[0], HELD, 1.0))
        own = Routing(layer.own.ids[rows], layer.own.weights[rows].float())
        found.append(policy.decide(layer.logits[rows].float(), layer.spec, told, own))
        cache.use(loaded(found[-1].ids, layer.spec.num_experts)[None])
    return Routing(torch.cat([one.ids for one in found]), torch.cat([one.weights for one in found]))
