"""The training loss: cross-entropy of answers and text, and load balancing in every layer by itself.

B rows of L tokens, T = B * L router inputs, E experts, K per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.training.data import Batch


class Routed(NamedTuple):
    """What a router returned: logits [T, E], weights and ids [T, K], the latter in no promised order."""

    logits_TE: Tensor
    weights_TK: Tensor
    ids_TK: Tensor

    @property
    def load_E(self) -> Tensor:
        """Tokens per expert."""
        return torch.bincount(self.ids_TK.flatten(), minlength=self.logits_TE.shape[-1])


class Losses(NamedTuple):
    """Summed cross-entropy of the learnt tokens in nats, the layers' mean balancing loss (0 without routers), and loads
    of layers, [E]."""

    nats: Tensor
    balance: Tensor
    loads: list[Tensor]


@contextmanager
def recorded(gates: list[nn.Module]) -> Iterator[list[Routed]]:
    """Inside the block, the list that comes out gains what each router returns, in the order of the calls."""
    calls: list[Routed] = []

    def hook(gate: nn.Module, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        calls.append(Routed(*output))

    handles = [gate.register_forward_hook(hook) for gate in gates]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def balance_loss(scores_TE: Tensor, load_E: Tensor) -> Tensor:
    """One layer's balancing loss: E times the sum over experts of load times mean share of the scores; even: K."""
    share_E = (scores_TE / scores_TE.sum(-1, keepdim=True)).mean(0)
    return len(load_E) * (load_E / len(scores_TE) * share_E).sum()


def losses(model: PreTrainedModel, batch: Batch, family: Family) -> Losses:
    """Run the model on `batch`.

    transformers' own balancing loss pools all layers and so evens out their mean only; this one evens out each.
    """
    given = {"position_ids": batch.positions_BL, "attention_mask": family.mask(model, batch.positions_BL)}
    with recorded(family.gates(model)) as calls:
        out = model.model(input_ids=batch.ids_BL, use_cache=False, **given)
    learn = batch.learn_BL[:, 1:]
    logits = model.lm_head(out.last_hidden_state[:, :-1][learn])
    nats = F.cross_entropy(logits, batch.ids_BL[:, 1:][learn], reduction="sum")
    loads = [call.load_E for call in calls]
    layers = [balance_loss(family.score(call.logits_TE), load) for call, load in zip(calls, loads, strict=True)]
    return Losses(nats, torch.stack(layers).mean() if layers else torch.zeros_like(nats), loads)


@torch.no_grad()
def move_bias(gate: Any, load_E: Tensor, rate: float) -> None:
    """DeepSeek-V3's balancing: the selection bias of experts under the mean load rises by `rate`, of others it falls.

    Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, arXiv:2408.15664.
    """
    load_E = load_E.float()
    gate.e_score_correction_bias += rate * (load_E.mean() - load_E).sign()
