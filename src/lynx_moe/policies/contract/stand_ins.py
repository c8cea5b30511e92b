"""What a row that lost experts may take in their place: kept experts that it ranks next, which cost no load.

T rows, E experts, K = top_k.
"""

import torch
from torch import Tensor

from lynx_moe.policies.contract.fillers import EMPTY
from lynx_moe.policies.contract.step import Step
from lynx_moe.routing import order_key


def stand_ins(step: Step, stays_E: Tensor, live_TK: Tensor) -> Tensor:
    """int64 [T, K]: the row's own experts in live slots; in the others, in the order of slots, those of `stays_E` that
    the row had not chosen, as the model ranks them, from the groups that it may use; EMPTY where there are no more."""
    ids_TK = step.own.ids
    chosen_TE = torch.zeros_like(step.choice_TE, dtype=torch.bool).scatter(-1, ids_TK, True)
    open_TE = stays_E & ~chosen_TE & (step.choice_TE > -torch.inf)
    if step.allowed_TE is not None:
        open_TE = open_TE & step.allowed_TE
    next_TK = order_key(step.choice_TE, open_TE.long()).topk(ids_TK.shape[-1], -1).indices
    place_TK = (~live_TK).cumsum(-1) - 1
    found_TK = torch.where(place_TK < open_TE.sum(-1, keepdim=True), next_TK.gather(-1, place_TK.clamp(min=0)), EMPTY)
    return torch.where(live_TK, ids_TK, found_TK)
