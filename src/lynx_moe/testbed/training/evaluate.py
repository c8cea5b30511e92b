"""What a model knows: exact match on held-out exercises, bits per byte on held-out text.

B documents of at most L tokens, padded on the right (a causal model never looks there).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.tasks import Item
from lynx_moe.testbed.training.data import encode_item

BATCH_ROWS = 64


def padded(documents: Sequence[list[int]], pad: int, num_rows: int = BATCH_ROWS) -> Iterator[Tensor]:
    """The documents, in order, as tensors [B, L] padded on the right."""
    for i in range(0, len(documents), num_rows):
        rows = documents[i : i + num_rows]
        width = max(map(len, rows))
        yield torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@torch.inference_mode()
def exact_match(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]) -> list[bool]:
    """Whether each answer, with its `<eos>`, is the most likely token at every place when the right answer is fed in.

    The first wrong token ends a greedy generation's chance as well, so this equals exact match under greedy decoding.
    """
    encoded = [encode_item(item, tokenizer) for item in items]
    right: list[bool] = []
    for ids_BL in padded([ids for ids, _ in encoded], tokenizer.pad_token_id):
        best_BL = model(input_ids=ids_BL.to(model.device), use_cache=False).logits[:, :-1].argmax(-1).cpu()
        for row, best in zip(ids_BL, best_BL, strict=True):
            ids, given = encoded[len(right)]
            right.append(torch.equal(best[given - 1 : len(ids) - 1], row[given : len(ids)]))
    return right


@torch.inference_mode()
def nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    limit: int | None = None,
    num_rows: int = BATCH_ROWS,
) -> list[Tensor]:
    """Nats of each token of each text, read from its beginning after `<bos>`, of which `limit` counts as one."""
    documents = [tokenizer(text)["input_ids"][:limit] for text in texts]
    found: list[Tensor] = []
    for ids_BL in padded(documents, tokenizer.pad_token_id, num_rows):
        logits = model(input_ids=ids_BL, use_cache=False).logits[:, :-1]
        nats_BL = F.cross_entropy(logits.flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none").view(len(ids_BL), -1)
        found += [row[: len(documents[len(found) + i]) - 1] for i, row in enumerate(nats_BL)]
    return found


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[float]:
    """Bits per UTF-8 byte of each text, read from its beginning after `<bos>`."""
    found = nats(model, tokenizer, texts)
    return [n.sum().item() / math.log(2) / len(text.encode()) for n, text in zip(found, texts, strict=True)]
