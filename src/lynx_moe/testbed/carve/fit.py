"""One layer: a router and new output vectors for the groups, fitted so that the carved layer gives what the dense gave.

N tokens, H hidden size, F neurons, G groups of M neurons, S shared neurons, K groups a token.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lynx_moe.testbed.carve.groups import balanced_groups, shared_neurons, sinks

RIDGE = 1e-3  # of the mean of the normal equations' diagonal
LARGE = 4.0  # outputs above so many medians count as if they were of that size: a sink would drown the others


@dataclass(frozen=True, kw_only=True)
class Dense:
    """A feed-forward layer down(silu(gate x) * up x)."""

    gate_FH: Tensor
    up_FH: Tensor
    down_HF: Tensor

    def inner(self, input_NH: Tensor) -> Tensor:
        """[N, F]: what comes in front of `down`."""
        return torch.nn.functional.silu(input_NH @ self.gate_FH.T) * (input_NH @ self.up_FH.T)


@dataclass(frozen=True, kw_only=True)
class Carved:
    """dense: the layer's neurons in their new order, the shared ones first, then group by group; `down` is what a
    token's own activations are multiplied by, those of its groups times K times the group's share in its K groups.
    neuron_F: which neuron of the given layer each was."""

    dense: Dense
    neuron_F: Tensor
    router_GH: Tensor
    num_shared: int
    top_k: int

    def weighed(self, inner_NF: Tensor, input_NH: Tensor) -> Tensor:
        """[N, F]: activations, in the new order, as `down` gets them: 0 for groups that a token does not choose."""
        logits_NG = input_NH @ self.router_GH.T
        top = logits_NG.topk(self.top_k, -1)
        weight_NG = torch.zeros_like(logits_NG).scatter(-1, top.indices, self.top_k * top.values.softmax(-1))
        shared_NS, routed_NR = inner_NF[:, : self.num_shared], inner_NF[:, self.num_shared :]
        routed_NGM = routed_NR.reshape(*weight_NG.shape, -1) * weight_NG[:, :, None]
        return torch.cat([shared_NS, routed_NGM.flatten(1)], -1)

    def __call__(self, input_NH: Tensor) -> Tensor:
        output_NH: Tensor = self.weighed(self.dense.inner(input_NH), input_NH) @ self.dense.down_HF.T
        return output_NH


def carve(
    dense: Dense, input_NH: Tensor, num_shared: int, num_groups: int, top_k: int, seed: int
) -> tuple[Carved, Tensor]:
    """The layer carved by what it does to these tokens, and what it then gives for them, [N, H]."""
    inner_NF = dense.inner(input_NH)
    output_NH = inner_NF @ dense.down_HF.T
    size_NF = inner_NF.abs() * dense.down_HF.norm(dim=0)
    shared_S = shared_neurons(size_NF, sinks(output_NH), num_shared)
    others_R = torch.ones(len(dense.gate_FH), dtype=torch.bool).scatter(0, shared_S, False).nonzero()[:, 0]
    members_GM = others_R[balanced_groups(size_NF[:, others_R], num_groups, seed)]
    del size_NF
    order_F = torch.cat([shared_S, members_GM.flatten()])
    inner_NF, down_HF = inner_NF[:, order_F], dense.down_HF[:, order_F]
    router_GH = ridge(input_NH, log_norms(inner_NF[:, num_shared:], down_HF[:, num_shared:], num_groups))
    made = Carved(
        dense=replace(dense, gate_FH=dense.gate_FH[order_F], up_FH=dense.up_FH[order_F], down_HF=down_HF),
        neuron_F=order_F,
        router_GH=router_GH,
        num_shared=num_shared,
        top_k=top_k,
    )
    inner_NF = made.weighed(inner_NF, input_NH)
    down_HF = ridge(inner_NF, output_NH, down_HF, evened(output_NH))
    return replace(made, dense=replace(made.dense, down_HF=down_HF)), inner_NF @ down_HF.T


def log_norms(inner_NR: Tensor, down_HR: Tensor, num_groups: int) -> Tensor:
    """[N, G]: the logarithm of the norm of what each group adds to a token, less its mean over the groups."""
    down_GHM = down_HR.reshape(len(down_HR), num_groups, -1).transpose(0, 1)
    gram_GMM = down_GHM.transpose(1, 2) @ down_GHM
    inner_GNM = inner_NR.reshape(len(inner_NR), num_groups, -1).transpose(0, 1)
    square_NG = ((inner_GNM @ gram_GMM) * inner_GNM).sum(-1).T
    log_NG: Tensor = square_NG.clamp(min=1e-12).log() / 2
    return log_NG - log_NG.mean(-1, keepdim=True)


def evened(output_NH: Tensor) -> Tensor:
    """[N]: weights of tokens in a fit, by which none counts for much more than its fellows."""
    norm_N = output_NH.norm(dim=-1)
    weight_N: Tensor = (LARGE * norm_N.median() / norm_N.clamp(min=1e-20)).clamp(max=1.0)
    return weight_N


def ridge(from_NF: Tensor, to_NG: Tensor, start_GF: Tensor | None = None, weight_N: Tensor | None = None) -> Tensor:
    """[G, F]: the linear map of least squared error, drawn towards `start` (None: 0); weights multiply the errors."""
    if start_GF is not None:
        to_NG = to_NG - from_NF @ start_GF.T
    if weight_N is not None:
        from_NF, to_NG = from_NF * weight_N[:, None], to_NG * weight_N[:, None]
    gram_FF = (from_NF.T @ from_NF).double()
    gram_FF += torch.eye(len(gram_FF)) * (RIDGE * gram_FF.diagonal().mean())
    change_GF: Tensor = torch.linalg.solve(gram_FF, (from_NF.T @ to_NG).double()).T.float()
    return change_GF if start_GF is None else start_GF + change_GF
