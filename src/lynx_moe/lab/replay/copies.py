"""Copies of popular experts on ranks as vLLM's load balancer (EPLB) lays them out, and which copy a row goes to.

E experts in P places (copies counted), R ranks of P / R places each, one rank after another; C the most copies of one
expert. D decisions of T rows each, K = top_k.

by token   vLLM's choice: row t of a step takes copy hash(t) mod copies, so that a popular expert's rows are spread, and
           all of its copies are loaded.
fewest     METRO's (arXiv 2512.09277): all rows of an expert go to one copy, that on the rank with the fewest active
           experts so far. Experts with the fewest copies go first, then by id.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lynx_moe.lab.replay.recording import Recording
from lynx_moe.policies import Placement
from lynx_moe.routing import Routing, loaded

KNUTH = 2654435769  # vLLM 0.32, `_eplb_map_and_record_i32_kernel`
CHOICES = ("fullest", "fewest")  # by token; METRO's


@dataclass(frozen=True, eq=False)
class Copies:
    """A layer's. expert_P: the expert in each place; copy_EC: the places of each expert, -1 behind the last."""

    num_ranks: int
    expert_P: Tensor
    copy_EC: Tensor

    @classmethod
    def balanced(cls, load_E: Tensor, redundant: int, num_ranks: int) -> "Copies":
        """vLLM's layout (`DefaultEplbPolicy`, one node, no groups) by the tokens that each expert got. Raises
        ValueError for places that do not fill the ranks evenly."""
        num_places = len(load_E) + redundant
        if num_places % num_ranks:
            raise ValueError(
                f"{len(load_E)} experts and {redundant} copies do not fill {num_ranks} ranks evenly; use "
                f"{redundant + num_ranks - num_places % num_ranks} copies"
            )
        load_E = load_E.double()
        experts, count_E = list(range(len(load_E))), torch.ones_like(load_E)
        for _ in range(redundant):
            experts.append(int((load_E / count_E).argmax()))
            count_E[experts[-1]] += 1
        share_P = (load_E / count_E)[experts]
        size, order = num_places // num_ranks, share_P.argsort(descending=True, stable=True).tolist()
        ranks: list[list[int]] = [[] for _ in range(num_ranks)]
        sums = [0.0] * num_ranks
        for place in order if size > 1 else range(num_places):  # one place a rank: as they stand
            rank = min(
                (r for r in range(num_ranks) if len(ranks[r]) < size), key=lambda r: (len(ranks[r]) and sums[r], r)
            )
            ranks[rank].append(experts[place])
            sums[rank] += float(share_P[place])
        return cls.of([expert for mine in ranks for expert in mine], num_ranks)

    @classmethod
    def of(cls, experts: list[int], num_ranks: int) -> "Copies":
        """From the expert in each place."""
        found: list[list[int]] = [[] for _ in range(max(experts) + 1)]
        for place, expert in enumerate(experts):
            found[expert].append(place)
        most = max(map(len, found))
        return cls(num_ranks, torch.tensor(experts), torch.tensor([p + [-1] * (most - len(p)) for p in found]))

    def placement(self) -> Placement:
        """An expert is on every rank that holds a copy of it."""
        mine_RS = self.expert_P.view(self.num_ranks, -1, 1) == torch.arange(len(self.copy_EC))
        return Placement.fixed(mine_RS.any(1))

    def by_token(self, ids_DTK: Tensor) -> Tensor:
        """bool [D, P]: the places that rows load, each row by its own number."""
        hash_T1 = (torch.arange(ids_DTK.shape[1])[:, None] * KNUTH) & 0xFFFFFFFF
        copy_DTK = hash_T1 % (self.copy_EC >= 0).sum(-1)[ids_DTK]
        place_DTK = self.copy_EC[ids_DTK].gather(-1, copy_DTK[..., None])[..., 0]
        return torch.vmap(lambda place_TK: loaded(place_TK, len(self.expert_P)))(place_DTK)

    def fewest(self, used_DE: Tensor) -> Tensor:
        """bool [D, P]: one place of every used expert."""
        size = len(self.expert_P) // self.num_ranks
        active_DP = torch.zeros(len(used_DE), len(self.expert_P), dtype=torch.bool)
        for expert in (self.copy_EC >= 0).sum(-1).argsort(stable=True).tolist():
            places_C = self.copy_EC[expert][self.copy_EC[expert] >= 0]
            count_DR = active_DP.view(len(used_DE), self.num_ranks, size).sum(-1)
            place_D = places_C[count_DR[:, places_C // size].argmin(-1)]
            active_DP[torch.arange(len(used_DE)), place_D] |= used_DE[:, expert]
        return active_DP

    def fullest(self, ids_DTK: Tensor, used_DE: Tensor, replicas: int) -> Tensor:
        """int64 [2, D]: loads of the fullest rank by each of CHOICES. ids_DTK: all rows' experts, used_DE: their union.
        Each of `replicas` counts its own rows from 0; METRO knows what all of them ask for."""
        parts = [self.by_token(part) for part in ids_DTK.tensor_split(replicas, 1) if part.shape[1]]
        flags_XDP = torch.stack([torch.stack(parts).any(0), self.fewest(used_DE)])
        return flags_XDP.view(2, len(used_DE), self.num_ranks, -1).sum(-1).amax(-1)


def balanced(window: Recording, redundant: int, num_ranks: int) -> list[Copies]:
    """Each layer's, by what its rows chose in the window. Raises ValueError as `Copies.balanced` does."""
    loads = (torch.bincount(layer.own.ids.flatten(), minlength=layer.spec.num_experts) for layer in window.layers)
    return [Copies.balanced(load_E, redundant, num_ranks) for load_E in loads]


def halves(recording: Recording) -> tuple[Recording, Recording]:
    """The first half of the steps, and the second; of a trace of routes, whole batches. Raises ValueError if there are
    not two."""
    run = recording.facts.get("run") or 1
    half = len(recording.rows) // run // 2 * run
    if not half:
        raise ValueError(
            "a load balancer is set up on one half of the steps or batches and measured on the other: give more"
        )
    rows = int(recording.rows[:half].sum())
    return _part(recording, slice(half), slice(rows)), _part(recording, slice(half, None), slice(rows, None))


def _part(recording: Recording, steps: slice, rows: slice) -> Recording:
    layers = tuple(
        replace(layer, logits=layer.logits[rows], own=Routing(layer.own.ids[rows], layer.own.weights[rows]))
        for layer in recording.layers
    )
    return replace(recording, layers=layers, rows=recording.rows[steps], remap=recording.remap[rows])
