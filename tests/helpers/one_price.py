"""`priced` where all rows ask one price, as it was defined before rows had prices: what that must still decide."""

import torch
from torch import Tensor

from lynx_moe.policies.contract.step import Step
from lynx_moe.policies.priced import Priced


def keep(policy: Priced, step: Step, price: float) -> Tensor:
    """bool [E]: the experts whose loss would add more than `price`."""
    ids_TK, num_experts, value_TK = step.own.ids, step.spec.num_experts, policy.values(step)
    stays_E, lost_T1 = step.union(ids_TK), torch.zeros(len(ids_TK), 1, dtype=torch.float64)
    for share in (0.125, 0.25, 0.5, 1.0):
        cube_TK = value_TK * (3 * lost_T1 * (lost_T1 + value_TK) + value_TK * value_TK)
        added_TK = value_TK + 1000.0 * cube_TK
        harm_E = value_TK.new_zeros(num_experts).scatter_add(0, ids_TK.flatten(), added_TK.flatten()).float()
        if policy.spreads:
            stays_E = stays_E & levels(policy, harm_E, stays_E, step.free_E, share * price)
        else:
            stays_E = stays_E & (harm_E > share * price)
        lost_T1 = value_TK.where(~(stays_E | step.free_E)[ids_TK], 0.0).sum(-1, keepdim=True)
    return stays_E


def levels(policy: Priced, harm_E: Tensor, stays_E: Tensor, free_E: Tensor, price: float) -> Tensor:
    place_E = policy.placement.places(harm_E, stays_E.long() + 2 * free_E)
    charge_E = harm_E.double().where(stays_E, 0.0).where(~free_E, torch.inf)
    charge_L = torch.zeros_like(charge_E).scatter_add(0, place_E, charge_E).float()
    return place_E < (charge_L > price * policy.placement.num_ranks).sum()
