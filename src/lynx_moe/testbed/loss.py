"""The training loss: cross-entropy of answers and text, and load balancing in every layer by itself.

B rows of L tokens, T = B * L router inputs, E experts.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from lynx_moe.testbed.data import Batch


def balance_loss(logits_TE: Tensor, top_k: int) -> Tensor:
    """One layer's load-balancing loss: E times the sum over experts of load times mean probability; even: `top_k`."""
    probs_TE = logits_TE.float().softmax(-1)
    num_experts = logits_TE.shape[-1]
    load_E = torch.bincount(probs_TE.topk(top_k).indices.flatten(), minlength=num_experts) / len(logits_TE)
    return num_experts * (load_E * probs_TE.mean(0)).sum()


def losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of the learnt tokens in nats, and the balancing loss averaged over layers.

    transformers' own balancing loss pools all layers and so evens out their mean only; this one evens out each.
    """
    out = model.model(
        input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False, output_router_logits=True
    )
    learn = batch.learn_BL[:, 1:]
    logits = model.lm_head(out.last_hidden_state[:, :-1][learn])
    top_k = model.config.num_experts_per_tok
    balance = torch.stack([balance_loss(layer, top_k) for layer in out.router_logits]).mean()
    return F.cross_entropy(logits, batch.ids_BL[:, 1:][learn], reduction="sum"), balance
