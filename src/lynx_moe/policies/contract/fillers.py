"""What slots hold that are left over: experts that the step loads anyway, at weight 0.

An engine's kernels take K ids a row. A repeated id would do no harm in some of them, and is miscounted by others.
T rows, E experts, K = top_k.
"""

import torch
from torch import Tensor

from lynx_moe.routing import loaded

EMPTY = -1  # in place of an expert's id, between a policy's proposal and the end of its decision


def fill_slots(ids_TK: Tensor, own_TK: Tensor, num_experts: int, valid_T: Tensor | None) -> Tensor:
    """ids_TK with other ids than EMPTY: in the order of its slots a row gets experts that valid rows load and itself
    does not have, those first that the model had not chosen for it (own_TK), then by id.

    Where the rows load too few for that, the slots that are left repeat the lowest id of the row.
    """
    is_empty_TK = ids_TK == EMPTY
    flags_TE = torch.zeros(len(ids_TK), num_experts + 1, dtype=torch.bool, device=ids_TK.device)
    mine_TE = flags_TE.scatter(-1, ids_TK % (num_experts + 1), True)[:, :num_experts]
    chosen_TE = flags_TE.scatter(-1, own_TK, True)[:, :num_experts]
    spare_TE = loaded(ids_TK, num_experts, valid_T) & ~mine_TE
    order_TE = torch.arange(num_experts, device=ids_TK.device) + num_experts * chosen_TE
    found_TK = order_TE.where(spare_TE, 2 * num_experts).topk(ids_TK.shape[-1], -1, largest=False).values
    filler_TK = found_TK.gather(-1, (is_empty_TK.cumsum(-1) - 1).clamp(min=0))
    lowest_T1 = ids_TK.where(~is_empty_TK, num_experts - 1).amin(-1, keepdim=True)
    filler_TK = torch.where(filler_TK < 2 * num_experts, filler_TK % num_experts, lowest_T1)
    return torch.where(is_empty_TK, filler_TK, ids_TK)


def without_repeats(ids_TK: Tensor, weights_TK: Tensor, own_TK: Tensor) -> Tensor:
    """ids_TK, where slots of weight 0 that repeat an id of their row hold other ones of own_TK instead, in its order.

    For kernels that miscount a repeated id. Such a step loads at least K experts, and none that own_TK would not.
    """
    same_TKK = ids_TK[:, :, None] == ids_TK[:, None, :]
    first_TKK = same_TKK.tril(-1) | (same_TKK & (weights_TK != 0)[:, None, :])  # slots that keep the id instead
    again_TK = (weights_TK == 0) & first_TKK.any(-1)
    taken_TK = (own_TK[:, :, None] == ids_TK[:, None, :]).any(-1)
    spare_TK = own_TK.gather(-1, taken_TK.to(torch.int8).argsort(dim=-1, stable=True))
    filler_TK = spare_TK.gather(-1, (again_TK.cumsum(-1) - 1).clamp(min=0))
    return torch.where(again_TK, filler_TK.to(ids_TK.dtype), ids_TK)
