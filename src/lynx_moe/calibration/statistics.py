"""Sums over tokens that calibration needs, one object per MoE layer, and the tensors that follow from them.

Fed by whoever runs the model: hidden_TD is what the layer's experts get, ids_TK and weights_TK its own routing, and
`expert(e, hidden_ND)` the output of expert e on given rows, [N, D], without its weight. Sums are float64, on the device
of what was fed; the tensors come back as float32 on the CPU.

Shapes: T tokens, E experts, K = top_k, D hidden width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Expert = Callable[[int, Tensor], Tensor]


class RoutedStatistics:
    """Of experts on the tokens that are routed to them: how many, how large their outputs are, and how well experts
    that a token has together stand in for one another (REAP arXiv 2510.13999, ExFold arXiv 2608.24938).

    u_i and v_i being the outputs of a and b on a token i that has both among its K, and c_i = |u_i|:

        fold_scale[a,b] = sum_i c_i <u_i, v_i> / (sum_i c_i |v_i|^2 + ridge)
        fold_loss[a,b]  = sum_i c_i |u_i - fold_scale[a,b] v_i|^2 / sum_i c_i |u_i|^2

    The weight c and the relative loss are those of the authors' release; its clipping of scalars to 4, which it uses
    for one of two models, is left out. The ridge is absolute, as published: it counts where outputs are small.
    A pair that was never seen has scale 0 and loss inf.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.num_tokens = 0
        self.sums: list[Tensor] = []

    def update(self, hidden_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, expert: Expert) -> None:
        """Adds the tokens of one call. Each expert is asked once, for the rows that are routed to it."""
        num_experts, ids_TK = self.num_experts, ids_TK.long()
        out_TKD = hidden_TD.new_zeros(*ids_TK.shape, hidden_TD.shape[-1], dtype=torch.float64)
        for e in torch.unique(ids_TK).tolist():
            rows, slots = (ids_TK == e).nonzero(as_tuple=True)
            out_TKD[rows, slots] = expert(e, hidden_TD[rows]).double()
        norm_TK = out_TKD.norm(dim=-1)
        dot_TKK = out_TKD @ out_TKD.transpose(1, 2)
        weight_TK1 = norm_TK[..., None]
        pair_TKK = ids_TK[:, :, None] * num_experts + ids_TK[:, None, :]
        per_expert = (torch.ones_like(norm_TK), norm_TK, norm_TK * weights_TK.double())
        per_pair = (weight_TK1 * dot_TKK, weight_TK1 * norm_TK[:, None, :] ** 2, (weight_TK1**3).expand_as(dot_TKK))
        sums = [_sum_by(ids_TK.flatten(), value.flatten(), num_experts) for value in per_expert]
        sums += [_sum_by(pair_TKK.flatten(), value.flatten(), num_experts**2) for value in per_pair]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.num_tokens += len(ids_TK)

    def tensors(self, ridge: float = 1e-3) -> dict[str, Tensor]:
        """load, gate_norm, output_norm, fold_scale, fold_loss. Raises ValueError before any token was added.

        An expert that no token chose has gate_norm 0 (REAP prunes it first) and the median output_norm of the others.
        """
        if not self.num_tokens:
            raise ValueError("no token was added: call update() with a layer's routed tokens first")
        count_E, norm_E, gate_E, dot, target, source = (value.cpu() for value in self.sums)
        seen_E, square = count_E > 0, (self.num_experts, self.num_experts)
        mean_E = norm_E / count_E.clamp(min=1)
        dot_EE, target_EE, source_EE = (value.view(square) for value in (dot, target, source))
        scale_EE = dot_EE / (target_EE + ridge)
        left_EE = (source_EE - 2 * scale_EE * dot_EE + scale_EE**2 * target_EE).clamp(min=0)
        loss_EE = (left_EE / source_EE).where(source_EE > 0, torch.inf)
        found = {
            "load": count_E / self.num_tokens,
            "gate_norm": gate_E / count_E.clamp(min=1),
            "output_norm": mean_E.where(seen_E, mean_E[seen_E].median()),
            "fold_scale": scale_EE.fill_diagonal_(1.0),
            "fold_loss": loss_EE.fill_diagonal_(0.0),
        }
        return {name: tensor.float() for name, tensor in found.items()}


class SimilarityStatistics:
    """Of all experts on the same tokens, routed to them or not: how alike their outputs are (SERE arXiv 2602.07616).

        frobenius   1 - |Y_a - Y_b| / max over pairs, Y_a being all outputs of a: 0 for the layer's least alike pair
        cosine      (1 + mean over tokens of cos(u_i, v_i)) / 2

    Both lie in [0, 1]. The authors' release has these and CKA, and uses another one for each of its models; frobenius
    is its default. Every expert runs on every token: E / K times the work of the layer.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.num_tokens = 0
        self.sums: list[Tensor] = []

    def update(self, hidden_TD: Tensor, expert: Expert) -> None:
        """Adds the tokens of one call; E x T x D numbers are held at once, in float64."""
        out_ETD = torch.stack([expert(e, hidden_TD).double() for e in range(self.num_experts)])
        unit_ETD = out_ETD / out_ETD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        sums = [flat @ flat.T for flat in (out_ETD.flatten(1), unit_ETD.flatten(1))]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.num_tokens += len(hidden_TD)

    def tensors(self, measure: str = "frobenius") -> dict[str, Tensor]:
        """similarity. Raises ValueError for an unknown measure, and before any token was added."""
        if measure not in ("frobenius", "cosine"):
            raise ValueError(f"measure={measure!r} is unknown; allowed: frobenius, cosine")
        if not self.num_tokens:
            raise ValueError("no token was added: call update() with a layer's tokens first")
        gram_EE, cosine_EE = (value.cpu() for value in self.sums)
        if measure == "cosine":
            alike_EE = (1 + cosine_EE / self.num_tokens) / 2
        else:
            square_E = gram_EE.diagonal()
            apart_EE = (square_E[:, None] + square_E - 2 * gram_EE).clamp(min=0).sqrt()
            alike_EE = 1 - apart_EE / apart_EE.amax().clamp(min=1e-300)
        return {"similarity": alike_EE.float().fill_diagonal_(1.0)}


class SensitivityStatistics:
    """What losing a slot costs, in nats of KL per unit of its squared weight share. With d the derivative of a drawn
    continuation's log-likelihood by a factor on the slot (1 as it is, 0 lost), and s its share of its row's weight:

        sensitivity[e] = sum (d^2 / 2) / sum s^2        over the slots of expert e, and draws
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts = num_experts
        self.sums: list[Tensor] = []

    def update(self, derivative_TK: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> None:
        """Adds one draw over the tokens of one call."""
        weights_TK = weights_TK.double()
        share_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp(min=1e-20)
        ids_S = ids_TK.long().flatten()
        values = (derivative_TK.double().square() / 2, share_TK.square())
        sums = [_sum_by(ids_S, value.flatten(), self.num_experts) for value in values]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums

    def tensors(self) -> dict[str, Tensor]:
        """sensitivity; of an expert that no token chose, that of its layer. Raises ValueError before any token was
        added."""
        if not self.sums:
            raise ValueError("no token was added: call update() with a layer's slots first")
        cost_E, square_E = (value.cpu() for value in self.sums)
        of_layer = cost_E.sum() / square_E.sum().clamp(min=1e-20)
        return {"sensitivity": (cost_E / square_E.clamp(min=1e-20)).where(square_E > 0, of_layer).float()}


def _sum_by(index_N: Tensor, value_N: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=value_N.dtype, device=value_N.device).index_add_(0, index_N, value_N)
