"""How each kind of router picks its experts, written again so that some can be denied.

T tokens, E experts, K per token, G groups. Given a router's logits and the denied experts, [T, E] each, the functions
return weights and ids, [T, K], by falling weight. With nobody denied they pick what the router itself picks.
"""

import math
from typing import Any

from torch import Tensor

Choice = tuple[Tensor, Tensor]


def softmax(logits_TE: Tensor) -> Tensor:
    """Scores that sum to 1 for each token."""
    return logits_TE.float().softmax(-1)


def sigmoid(logits_TE: Tensor) -> Tensor:
    """Scores of each expert by itself."""
    return logits_TE.float().sigmoid()


def by_softmax(gate: Any, logits_TE: Tensor, denied_TE: Tensor) -> Choice:
    """The K largest logits, weighted by softmax; without `norm_topk_prob = False` the weights are made to sum to 1.

    A softmax over the chosen logits alone, as gpt-oss has it, gives the same numbers.
    """
    probs_TE = softmax(logits_TE)
    ids_TK = logits_TE.float().masked_fill(denied_TE, -math.inf).topk(gate.top_k).indices
    weights_TK = probs_TE.gather(1, ids_TK)
    if getattr(gate, "norm_topk_prob", True):
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return weights_TK, ids_TK


def by_biased_groups(gate: Any, logits_TE: Tensor, denied_TE: Tensor) -> Choice:
    """DeepSeek-V3: groups by their best two, then the K best in them, by score plus bias; weights leave out the bias.

    A denied expert counts for nothing in its group either.
    """
    scores_TE = sigmoid(logits_TE)
    biased_TE = (scores_TE + gate.e_score_correction_bias).masked_fill(denied_TE, -math.inf)
    groups_TGE = biased_TE.unflatten(-1, (gate.num_group, -1))
    best_TG = groups_TGE.topk(2).values.sum(-1).topk(gate.topk_group).indices
    kept_TG = best_TG.new_zeros(groups_TGE.shape[:2]).scatter(1, best_TG, 1).bool()
    ids_TK = groups_TGE.masked_fill(~kept_TG.unsqueeze(-1), -math.inf).flatten(1).topk(gate.top_k).indices
    weights_TK = scores_TE.gather(1, ids_TK).masked_fill(denied_TE.gather(1, ids_TK), 0.0)
    order_TK = weights_TK.argsort(dim=-1, descending=True, stable=True)
    weights_TK, ids_TK = weights_TK.gather(1, order_TK), ids_TK.gather(1, order_TK)
    if gate.norm_topk_prob:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * gate.routed_scaling_factor, ids_TK
