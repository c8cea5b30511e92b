"""Which neurons of a dense layer stay with every token, and which form an expert together.

N tokens, F neurons of the feed-forward layer, G groups of M neurons.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SINK = 20.0  # times the median norm of the layer's output
SINK_NEURONS = 8
ROWS = 6144  # tokens that are looked at, of all
ROUNDS = 8


def sinks(output_NH: Tensor) -> Tensor:
    """bool [N]: tokens whose output is out of all proportion. A sequence's first token, which attention leans on where
    it has nothing to say, gets an output hundreds of times the usual one in a few layers."""
    norm_N = output_NH.norm(dim=-1)
    is_sink_N: Tensor = norm_N > SINK * norm_N.median()
    return is_sink_N


def rows(num: int) -> Tensor:
    """int64: evenly spaced ones of so many tokens."""
    return torch.linspace(0, num - 1, min(ROWS, num)).long()


def shared_neurons(size_NF: Tensor, sink_N: Tensor, num: int) -> Tensor:
    """int64 [num], ascending: the neurons that are among the strongest third for most tokens; those that make a sink
    come first of all. size: |activation| x norm of the neuron's output vector."""
    looked_NF = size_NF[rows(len(size_NF))]
    often_F = torch.zeros_like(looked_NF).scatter(1, looked_NF.topk(size_NF.shape[1] // 3, -1).indices, 1.0).sum(0)
    if sink_N.any():
        often_F[size_NF[sink_N].mean(0).topk(SINK_NEURONS).indices] = torch.inf
    return often_F.topk(num).indices.sort().values


def balanced_groups(size_NF: Tensor, num_groups: int, seed: int) -> Tensor:
    """int64 [G, M]: places of neurons that are strong for the same tokens. k-means on the neurons' course over tokens,
    with equally many in each group (assignments are solved exactly)."""
    course_FN = torch.nn.functional.normalize(size_NF[rows(len(size_NF))], dim=-1).T
    course_FN = torch.nn.functional.normalize(course_FN - course_FN.mean(-1, keepdim=True), dim=-1)
    generator = torch.Generator().manual_seed(seed)
    size = len(course_FN) // num_groups
    centre_GN = course_FN[torch.randperm(len(course_FN), generator=generator)[:num_groups]]
    found = np.zeros(0)
    for _ in range(ROUNDS):
        likeness_FG = (course_FN @ centre_GN.T).double().numpy()
        group_F = linear_sum_assignment(np.repeat(likeness_FG, size, axis=1), maximize=True)[1] // size
        if np.array_equal(group_F, found):
            break
        found = group_F
        members_GM = torch.from_numpy(np.argsort(group_F, kind="stable").reshape(num_groups, size))
        centre_GN = torch.nn.functional.normalize(course_FN[members_GM].mean(1), dim=-1)
    return members_GM
