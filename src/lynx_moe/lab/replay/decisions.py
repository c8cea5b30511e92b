"""Recorded steps as tensors that a policy decides many of at once.

D decisions of T rows each, E experts, K = top_k. A decision is a step of a layer; those of equally many rows are taken
together (`torch.vmap` over the policy's plain-torch definition).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lynx_moe.lab.replay.recording import Recording
from lynx_moe.policies import Policy
from lynx_moe.routing import RouterSpec, Routing, Rows, loaded, scores

CHUNK = 256


@dataclass(frozen=True, eq=False)
class Decisions:
    """layer_D, step_D: which they are, steps counted among the chosen ones; places: their rows among all N; bias [D, E]
    where the routers have one."""

    spec: RouterSpec
    layer_D: Tensor
    step_D: Tensor
    places: Tensor
    logits: Tensor
    ids: Tensor
    weights: Tensor
    remap: Tensor
    bias: Tensor | None

    def decide(self, policy: Policy, replicas: int = 1) -> Routing:
        """The policy's ids and weights, [D, T, K]. Each of `replicas` decides for its own part of the rows: the first
        ones of one more, where it does not come out even."""
        if policy.is_identity:
            return Routing(self.ids, self.weights)

        def one(
            logits_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor, remap_T: Tensor, *bias_E: Tensor
        ) -> tuple[Tensor, Tensor]:
            spec = replace(self.spec, bias=bias_E[0]) if bias_E else self.spec
            routing = policy.route(logits_TE, spec, Rows(remap=remap_T), Routing(ids_TK, weights_TK))
            return routing.ids, routing.weights

        rows = [part.tensor_split(replicas, 1) for part in (self.logits, self.ids, self.weights, self.remap)]
        found = []
        for mine in zip(*rows, strict=True):
            parts = [*mine, *([] if self.bias is None else [self.bias])]
            chunks = zip(*(torch.split(part, CHUNK) for part in parts), strict=True)
            decided = [_each(one, chunk) for chunk in chunks] if mine[0].shape[1] else [mine[1:3]]
            found.append([torch.cat(column) for column in zip(*decided, strict=True)])
        ids_DTK, weights_DTK = (torch.cat(column, 1) for column in zip(*found, strict=True))
        return Routing(ids_DTK, weights_DTK)

    def used(self, ids_DTK: Tensor, replicas: int = 1) -> Tensor:
        """bool [D, R, E]: the experts that each replica's rows load."""
        flags = torch.vmap(lambda ids: loaded(ids, self.spec.num_experts))
        return torch.stack([flags(part) for part in ids_DTK.tensor_split(replicas, 1)], 1)

    def scores(self) -> Tensor:
        return scores(self.logits, self.spec)


def _each(one: Callable[..., tuple[Tensor, ...]], chunk: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`one` of every decision: at once, or in turn where this torch cannot (2.11: a view as integers)."""
    try:
        found: tuple[Tensor, ...] = torch.vmap(one)(*chunk)
    except RuntimeError as error:
        if "Batching rule not implemented" not in str(error):
            raise
        decided = [one(*parts) for parts in zip(*chunk, strict=True)]
        found = tuple(map(torch.stack, zip(*decided, strict=True)))
    return found


def chosen_steps(recording: Recording, num_steps: int | None) -> Tensor:
    """The numbers of the steps to look at, evenly spaced; None: all."""
    total = len(recording.rows)
    if num_steps is None or num_steps >= total:
        return torch.arange(total)
    return torch.linspace(0, total - 1, num_steps).long()


def groups(recording: Recording, steps_S: Tensor, layers: Sequence[int]) -> Iterator[Decisions]:
    """The decisions of some layers at some steps, by the number of their rows."""
    recorded = [recording.layers[number] for number in layers]
    rows_S = recording.rows.long()
    start_S = (rows_S.cumsum(0) - rows_S)[steps_S]
    rows_S = rows_S[steps_S]
    for size in torch.unique(rows_S).tolist():
        step_G = (rows_S == size).nonzero()[:, 0]
        places = start_S[step_G, None] + torch.arange(size)

        def gather(parts: list[Tensor], places: Tensor = places) -> Tensor:
            return torch.cat([part[places] for part in parts])

        biases = [layer.spec.bias.expand(len(places), -1) for layer in recorded if layer.spec.bias is not None]
        yield Decisions(
            spec=replace(recorded[0].spec, bias=None),
            layer_D=torch.tensor(layers).repeat_interleave(len(places)),
            step_D=step_G.repeat(len(recorded)),
            places=places.repeat(len(recorded), 1),
            logits=gather([layer.logits for layer in recorded]).float(),
            ids=gather([layer.own.ids for layer in recorded]),
            weights=gather([layer.own.weights for layer in recorded]),
            remap=gather([recording.remap] * len(recorded)),
            bias=torch.cat(biases) if biases else None,
        )
