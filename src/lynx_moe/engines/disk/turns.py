"""A layer's experts on a step's rows, when only K of them are in memory at a time.

T rows, k experts of a row, H hidden size. Where the step has at most K distinct experts, the kernel runs once, as it
would with all of them in memory. Where it has more, they come in turns, each once. Then every expert's answer to a row
is rounded to the output's type, and a row's are added up in float32 in the order of its slots: what comes out depends
on the step alone, and never on which experts were there before it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lynx_moe.engines.disk.slots import Slots, Sums

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""(output [T, H], hidden [T, H], weights [T, k] float32, slots [T, k] int32): fills output."""


def compute(
    slots: Slots, sums: Sums, kernel: Kernel, output_TH: Tensor, hidden_TH: Tensor, weights_Tk: Tensor, ids_Tk: Tensor
) -> None:
    """Fills output_TH. Raises ReadError where an expert cannot be had."""
    ids = ids_Tk.numpy()
    wanted = np.unique(ids)
    if len(wanted) <= len(slots):
        kernel(output_TH, hidden_TH, weights_Tk, torch.from_numpy(slots.hold(wanted, sums)[ids]))
        return
    sums.rounds += 1
    num_rows, top_k = ids.shape
    flat = ids.reshape(-1)
    each = output_TH.new_empty(len(flat), output_TH.shape[1])
    for turn in slots.turns(wanted):
        slot_E = slots.hold(turn, sums)
        places = np.flatnonzero(np.isin(flat, turn))
        found = output_TH.new_empty(len(places), output_TH.shape[1])
        chosen = torch.from_numpy(slot_E[flat[places]])[:, None]
        kernel(found, hidden_TH[torch.from_numpy(places // top_k)], torch.ones(len(places), 1), chosen)
        each[torch.from_numpy(places)] = found
    total = torch.zeros(output_TH.shape, dtype=torch.float32)
    for k, answers_TH in enumerate(each.view(num_rows, top_k, -1).unbind(1)):
        total.addcmul_(weights_Tk[:, k, None], answers_TH.float())
    output_TH.copy_(total)
