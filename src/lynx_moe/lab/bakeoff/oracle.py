"""How much is left: a policy that sees what no policy can, every row's true expert outputs before it decides.

    u[t,e]  = w[t,e] f_e(h[t])                              what the row gets of an expert of its own
    x[t]    = |sum of u[t,e] over the row's lost experts|^2 / mean over the rows of |sum of all u[t,e]|^2
    harm    = sum_t  x[t] + STEEP x[t]^3

The form of `priced`, with the true error of the MoE block's output in place of its estimate, and the cheapest expert
taken again and again while that adds at most `price`. It calls every expert that the model's own routing would load, so
it saves nothing: its KL at a share of experts tells how close a rule comes that sees the router's logits only.

Shapes: P prices, B rows each, K = top_k slots, E experts, D hidden width.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from lynx_moe.engines.transformers.experts import alone, experts_of
from lynx_moe.engines.transformers.model import checked, layers_of
from lynx_moe.engines.transformers.wrap import Wraps
from lynx_moe.lab.bakeoff.together import Loads
from lynx_moe.policies.priced import STEEP

POWER = 0.3  # of `priced`: what remains is scaled by (total / rest) ** POWER


class Oracle:
    """A block in which the model's experts see, of every batch, the exact rows first, then as many for each price.

    Stands where `bakeoff.together`'s run does. Raises ValueError for a model without MoE layers, and for one whose
    experts cannot be called one by one.
    """

    def __init__(self, model: Any, prices: Sequence[float]) -> None:
        model = checked(model)
        found, _, _ = layers_of(model, None)
        self._experts = [(experts_of(model, one), one.layer.spec.num_experts) for one in found]
        self._prices = torch.tensor(prices, dtype=torch.float64)
        self._wraps = Wraps()
        self.loads = Loads()

    def __enter__(self) -> Self:
        for experts, num_experts in self._experts:
            self._wraps.add(experts, "forward", self._around(num_experts))
        return self

    def __exit__(self, *_: object) -> None:
        self._wraps.undo()

    def _around(self, num_experts: int) -> Any:
        def forward(original: Any, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            ids_TK, hidden_TD = ids.reshape(-1, ids.shape[-1]).long(), hidden.reshape(-1, hidden.shape[-1])
            rows_SD = hidden_TD.repeat_interleave(ids_TK.shape[-1], 0)
            outputs_SD = alone(original, rows_SD, ids_TK.reshape(-1, 1).to(ids.dtype), weights)
            own_TKD = outputs_SD.view(*ids_TK.shape, -1) * weights.reshape(*ids_TK.shape, 1)
            num = len(self._prices) + 1
            parts = own_TKD.view(num, -1, *own_TKD.shape[1:]), ids_TK.view(num, -1, ids_TK.shape[-1])
            live_PBK = kept(parts[0][1:], parts[1][1:], num_experts, self._prices.to(hidden.device))
            live_TK = torch.cat((torch.ones_like(live_PBK[:1]), live_PBK)).view(ids_TK.shape)
            self._count(ids_TK, live_TK, num_experts)
            share_TK = weights.reshape(ids_TK.shape).float()
            left_T1 = share_TK.where(live_TK, 0.0).sum(-1, keepdim=True) / share_TK.sum(-1, keepdim=True)
            scale_TK = (live_TK * left_T1.clamp(min=1e-9) ** -POWER).to(own_TKD.dtype)
            return (own_TKD * scale_TK[..., None]).sum(1).view(hidden.shape)

        return forward

    def _count(self, ids_TK: Tensor, live_TK: Tensor, num_experts: int) -> None:
        num = len(self._prices) + 1
        filled_TK = ids_TK.where(live_TK, ids_TK.gather(-1, live_TK.int().argmax(-1, keepdim=True)))
        self.loads.add(ids_TK.view(num, -1), filled_TK.view(num, -1), num_experts)


def kept(own_PBKD: Tensor, ids_PBK: Tensor, num_experts: int, price_P: Tensor) -> Tensor:
    """bool [P, B, K]: the slots that stay at each price; a row that would lose everything keeps its largest output."""
    own_PBKD = own_PBKD.double()
    gram_PBKK = own_PBKD @ own_PBKD.transpose(-1, -2)
    gram_PBKK = gram_PBKK / gram_PBKK.sum((-1, -2)).mean(-1)[:, None, None, None].clamp(min=1e-20)
    size_PBK = gram_PBKK.diagonal(dim1=-2, dim2=-1)
    flat_PS = ids_PBK.flatten(1)
    stays_PE = torch.zeros(len(ids_PBK), num_experts, dtype=torch.bool, device=ids_PBK.device).scatter(1, flat_PS, True)
    lost_PBK = torch.zeros_like(size_PBK)
    for _ in range(num_experts):
        toward_PBK = (gram_PBKK @ lost_PBK[..., None])[..., 0]
        x_PB1 = (lost_PBK * toward_PBK).sum(-1, keepdim=True)
        more_PBK = x_PB1 + size_PBK + 2 * toward_PBK
        added_PBK = _harm(more_PBK) - _harm(x_PB1)
        harm_PE = added_PBK.new_zeros(stays_PE.shape).scatter_add(1, flat_PS, added_PBK.flatten(1))
        least_P, expert_P = harm_PE.where(stays_PE, torch.inf).min(1)
        goes_P = least_P <= price_P
        if not goes_P.any():
            break
        stays_PE = stays_PE.scatter(1, expert_P[:, None], stays_PE.gather(1, expert_P[:, None]) & ~goes_P[:, None])
        lost_PBK = (~stays_PE.gather(1, flat_PS)).view(size_PBK.shape).double()
    live_PBK = lost_PBK == 0
    largest_PBK = size_PBK == size_PBK.amax(-1, keepdim=True)
    return live_PBK | (largest_PBK & ~live_PBK.any(-1, keepdim=True))


def _harm(x: Tensor) -> Tensor:
    return x + STEEP * x**3
