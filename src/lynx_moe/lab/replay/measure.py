"""Policies on a recording, without the model: which experts they load, and what they keep of the router's intent.

D decisions of T rows each, E experts, K = top_k. A decision is a step of a layer; those of equally many rows are taken
together (`torch.vmap` over the policy's plain-torch definition).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.lab.replay.recording import Recording
from lynx_moe.policies import ModelShape, Placement, Policy, make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, loaded, scores

CHUNK = 256


def replay(
    recording: Recording, policies: Sequence[str | Policy], num_steps: int | None = None, ranks: int = 1
) -> list[dict[str, Any]]:
    """A line per policy, means over layers and steps, or over the rows that it may remap:

    before, after  distinct experts of a layer and step, by the model's own routing and by the policy's.
    fullest_before, fullest_after  the same of the rank that loads most, the experts living on `ranks` ranks, one after
                   another.
    mass           router scores of the experts that a row got, as a share of those that it asked for.
    overlap        share of a row's own experts that it got.
    changed        share of rows that got other experts than they asked for.

    num_steps: only so many steps, evenly spaced; None: all. Raises ValueError for a bad policy or number of steps, and
    for a knob that does not fit the recorded router.
    """
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"{num_steps} steps leave nothing to replay; use 1 or more")
    shape = ModelShape(**recording.facts["shape"])
    named = [(make_policy(policy) if isinstance(policy, str) else policy).for_model(shape) for policy in policies]
    placement = Placement.linear(recording.layers[0].spec.num_experts, ranks)
    layers = [Layer(name=layer.name, spec=layer.spec, placement=placement) for layer in recording.layers]
    by_layer = [fitted(policy, layers, shape.name or shape.model_type, recording.remap.device) for policy in named]
    stacked = list(_groups(recording, num_steps))
    lines = []
    for policy, fits in zip(named, by_layer, strict=True):
        jobs = [(fits[0], group) for group in stacked]
        if policy.calibration_file is not None:  # every layer has a policy of its own
            jobs = [(one, g) for n, one in enumerate(fits) for g in _groups(_only(recording, n), num_steps)]
        lines.append(_line(policy, jobs, placement))
    return lines


def routings(recording: Recording, policy: Policy, layer: int) -> Tensor:
    """The ids [N, K] that `policy` gives all rows of a layer."""
    ids_NK = recording.layers[layer].own.ids.clone()
    for group in _groups(_only(recording, layer), None):
        ids_NK[group.places] = group.decide(policy)
    return ids_NK


@dataclass(frozen=True, eq=False)
class _Group:
    """D decisions of T rows each; places: their rows among all N; bias [D, E] where the routers have one."""

    spec: RouterSpec
    places: Tensor
    logits: Tensor
    ids: Tensor
    weights: Tensor
    remap: Tensor
    bias: Tensor | None

    def decide(self, policy: Policy) -> Tensor:
        """The policy's ids, [D, T, K]."""
        if policy.is_identity:
            return self.ids

        def one(logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor, remap_T: Tensor, *bias_E: Tensor) -> Tensor:
            spec = replace(self.spec, bias=bias_E[0]) if bias_E else self.spec
            return policy.route(logits_TE, spec, Rows(remap=remap_T), Routing(ids_TK, weights_TK)).ids

        parts = [self.logits, self.ids, self.weights, self.remap, *([] if self.bias is None else [self.bias])]
        chunks = zip(*(torch.split(part, CHUNK) for part in parts), strict=True)
        return torch.cat([torch.vmap(one)(*chunk) for chunk in chunks])

    def scores(self) -> Tensor:
        return scores(self.logits, self.spec)


def _only(recording: Recording, layer: int) -> Recording:
    return replace(recording, layers=recording.layers[layer : layer + 1])


def _groups(recording: Recording, num_steps: int | None) -> Iterator[_Group]:
    """The decisions of all layers and of the wanted steps, by the number of their rows."""
    first, rows_S = recording.layers[0].spec, recording.rows.long()
    starts_S = rows_S.cumsum(0) - rows_S
    if num_steps is not None and num_steps < len(rows_S):
        chosen = torch.linspace(0, len(rows_S) - 1, num_steps).long()
        rows_S, starts_S = rows_S[chosen], starts_S[chosen]
    for size in torch.unique(rows_S).tolist():
        places = starts_S[rows_S == size, None] + torch.arange(size)

        def gather(parts: list[Tensor], places: Tensor = places) -> Tensor:
            return torch.cat([part[places] for part in parts])

        layers = recording.layers
        biases = [layer.spec.bias.expand(len(places), -1) for layer in layers if layer.spec.bias is not None]
        yield _Group(
            spec=replace(first, bias=None),
            places=places.repeat(len(layers), 1),
            logits=gather([layer.logits for layer in layers]).float(),
            ids=gather([layer.own.ids for layer in layers]),
            weights=gather([layer.own.weights for layer in layers]),
            remap=gather([recording.remap] * len(layers)),
            bias=torch.cat(biases) if biases else None,
        )


def _line(policy: Policy, jobs: Sequence[tuple[Policy, _Group]], placement: Placement) -> dict[str, Any]:
    sums = torch.zeros(5, dtype=torch.float64)
    fullest = torch.zeros(2, dtype=torch.float64)
    decisions = rows = 0
    for one, group in jobs:
        ids_DTK, score_DTE = group.decide(one), group.scores()
        for column, choice in enumerate((group.ids, ids_DTK)):
            loaded_DE = torch.vmap(lambda ids, num=group.spec.num_experts: loaded(ids, num))(choice)
            sums[column] += loaded_DE.sum()
            fullest[column] += torch.vmap(placement.count)(loaded_DE).amax(-1).sum()
        asked_DT = score_DTE.gather(2, group.ids).sum(-1).clamp(min=1e-20)
        chosen_DTE = torch.zeros_like(score_DTE).scatter(2, ids_DTK, 1.0)  # a dropped slot repeats another's id
        got_DT = (score_DTE * chosen_DTE).sum(-1) / asked_DT
        same_DT = chosen_DTE.gather(2, group.ids).double().mean(-1)
        sums[2] += got_DT[group.remap].double().sum()
        sums[3] += same_DT[group.remap].sum()
        sums[4] += (same_DT[group.remap] < 1).sum()
        decisions += len(ids_DTK)
        rows += int(group.remap.sum())
    before, after = (sums[:2] / decisions).tolist()
    fullest_before, fullest_after = (fullest / decisions).tolist()
    mass, overlap, changed = (sums[2:] / max(rows, 1)).tolist()
    return {
        "policy": policy.spec,
        "before": before,
        "after": after,
        "fullest_before": fullest_before,
        "fullest_after": fullest_after,
        "mass": mass,
        "overlap": overlap,
        "changed": changed,
    }
