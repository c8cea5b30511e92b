"""Replicas that know each other's last step: what the others have kept then costs a replica nothing more.

A rank's experts are loaded by whatever any replica sends. A vote of the same step comes too late for a layer, so the
only one that costs no time is that of the step before, exchanged while the next one is prepared. Here an expert that
another replica kept in the step before counts as donated.

D decisions of T rows each, L layers, S steps, E experts, K = top_k, J rows that stand for donated experts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lynx_moe.lab.replay.decisions import Decisions
from lynx_moe.policies import Policy
from lynx_moe.routing import Routing, Rows, loaded


def decide(group: Decisions, policy: Policy, replicas: int, run: int) -> Routing:
    """As `group.decide`; a batch goes on for `run` steps, and its first one knows nothing of the others."""
    if policy.is_identity:
        return Routing(group.ids, group.weights)
    num_layers, num_experts = int(group.layer_D.max()) + 1, group.spec.num_experts
    ids_DTK, weights_DTK = group.ids.clone(), group.weights.clone()
    split = torch.arange(group.ids.shape[1]).tensor_split(replicas)
    num_steps = len(ids_DTK) // num_layers
    for layer in range(num_layers):
        spec = group.spec if group.bias is None else replace(group.spec, bias=group.bias[layer * num_steps])
        kept_RE = torch.zeros(replicas, num_experts, dtype=torch.bool)
        for step in range(num_steps):
            if step % run == 0:
                kept_RE.zero_()
            at, before_RE = layer * num_steps + step, kept_RE.clone()
            for replica, rows in enumerate(split):
                others_E = torch.cat([before_RE[:replica], before_RE[replica + 1 :]]).any(0)
                donors, valid_J = _donors(others_E, group.ids.shape[2])
                alone = torch.zeros(len(valid_J), group.logits.shape[2])
                final = policy.decide(
                    torch.cat([group.logits[at, rows], alone]),
                    spec,
                    Rows(
                        valid=torch.cat([torch.ones(len(rows), dtype=torch.bool), valid_J]),
                        remap=torch.cat([group.remap[at, rows], torch.zeros_like(valid_J)]),
                    ),
                    Routing(
                        torch.cat([group.ids[at, rows], donors.ids]),
                        torch.cat([group.weights[at, rows], donors.weights.to(group.weights.dtype)]),
                    ),
                )
                ids_DTK[at, rows], weights_DTK[at, rows] = final.ids[: len(rows)], final.weights[: len(rows)]
                kept_RE[replica] = loaded(final.ids[: len(rows)], num_experts)
    return Routing(ids_DTK, weights_DTK)


def _donors(others_E: Tensor, top_k: int) -> tuple[Routing, Tensor]:
    """([J, K], bool [J]): rows that keep their routing and hold these experts, and which of them are needed."""
    num_rows, count = -(-len(others_E) // top_k), int(others_E.sum())
    place = torch.arange(num_rows * top_k)
    order = others_E.int().argsort(descending=True, stable=True)
    ids_JK = order[place % max(count, 1)].view(num_rows, top_k)
    return Routing(ids_JK, torch.full(ids_JK.shape, 1 / top_k)), place.view(num_rows, top_k)[:, 0] < count
