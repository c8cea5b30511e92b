"""Attention masks that keep the documents of a packed row apart, which each model class wants told in its own way.

`positions_BL` restart at 0 with every document.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask


def from_positions(model: PreTrainedModel, positions_BL: Tensor) -> None:
    """No mask: the class makes a block-diagonal one itself from positions that restart."""


def by_layer_type(model: PreTrainedModel, positions_BL: Tensor) -> dict[str, Any]:
    """A mask for each type of layer, for classes that make theirs without a look at the positions (gpt-oss)."""
    embeds = model.get_input_embeddings().weight.new_empty(*positions_BL.shape, 1)
    given = (model.config, embeds, None, None)  # no padding and no cache, whose parameter's name depends on the version
    return {
        "full_attention": create_causal_mask(*given, position_ids=positions_BL),
        "sliding_attention": create_sliding_window_causal_mask(*given, position_ids=positions_BL),
    }
