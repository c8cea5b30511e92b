"""What the layer learns: the model's own next-token distributions, at every depth that a draft has.

B rows of L tokens, H hidden width, V words, D depths. A draft's later tokens attend to the same keys as in serving:
those of the layer's first pass, which has seen the model's hidden states, and the draft's own.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from lynx_moe.testbed.mtp.layer import Predictor
from lynx_moe.testbed.training.data import Batch


class Depth(NamedTuple):
    """Of one depth, over the learnt tokens: summed cross-entropy with the model's distribution in nats, how many of
    them have the model's first choice as the layer's, and how many they are."""

    nats: Tensor
    agree: Tensor
    tokens: Tensor


def depths(target: PreTrainedModel, layer: Predictor, batch: Batch, num_depths: int) -> list[Depth]:
    """A `Depth` each, all tokens before the draft's being the true ones."""
    positions_BL = batch.positions_BL
    with torch.no_grad():
        given = {"position_ids": positions_BL, "use_cache": False}
        hidden_BLH = target.model(input_ids=batch.ids_BL, **given).last_hidden_state
        truth_BLV = target.lm_head(hidden_BLH).roll(-1, 1)  # at p: what the model says after token p + 1
    learn_BL = batch.learn_BL.roll(-2, 1) & (positions_BL.roll(-2, 1) == positions_BL + 2)
    found = []
    for depth, state_BLH in enumerate(states(target, layer, batch, hidden_BLH, num_depths)):
        here_BL = learn_BL & (positions_BL >= depth)
        found.append(_compare(truth_BLV[here_BL], target.lm_head(state_BLH[here_BL])))
    return found


def states(
    target: PreTrainedModel, layer: Predictor, batch: Batch, hidden_BLH: Tensor, num_depths: int
) -> Iterator[Tensor]:
    """What the layer hands on at each depth, [B, L, H]: at position p, of the draft that began `depth` - 1 positions
    before. hidden_BLH: the model's own states."""
    positions_BL = batch.positions_BL
    with torch.no_grad():
        next_BLH = target.get_input_embeddings()(batch.ids_BL.roll(-1, 1))
        rotation = target.model.rotary_emb(hidden_BLH, position_ids=positions_BL)
    cache = DynamicCache()
    for depth in range(1, num_depths + 1):
        given = {"attention_mask": mask(positions_BL, depth), "position_embeddings": rotation}
        hidden_BLH = layer(next_BLH, hidden_BLH, positions_BL, past_key_values=cache, **given)
        yield hidden_BLH
        hidden_BLH = hidden_BLH.roll(1, 1)  # at p: what was found at p - 1


def mask(positions_BL: Tensor, depth: int) -> Tensor:
    """bool [B, 1, L, depth * L]: which keys a token at this depth of a draft attends to, those of each depth's pass
    behind one another. Keys of the first pass end where the draft begins; of later ones it sees its own tokens."""
    document_BL = (positions_BL == 0).cumsum(1)
    same_BLL = document_BL[:, :, None] == document_BL[:, None, :]
    place = torch.arange(positions_BL.shape[1], device=positions_BL.device)
    behind_LL = place[:, None] - place[None, :]
    blocks = [behind_LL >= depth - 1, *(behind_LL == depth - other for other in range(2, depth + 1))]
    return torch.cat([same_BLL & block for block in blocks], -1)[:, None]


def _compare(truth_NV: Tensor, logits_NV: Tensor) -> Depth:
    nats = F.cross_entropy(logits_NV, truth_NV.softmax(-1), reduction="sum")
    agree = (truth_NV.argmax(-1) == logits_NV.argmax(-1)).sum()
    return Depth(nats, agree, torch.tensor(len(truth_NV)))


def total(found: list[Depth]) -> Any:
    """Nats per token, the mean over depths."""
    return torch.stack([depth.nats / depth.tokens.clamp(min=1) for depth in found]).mean()
