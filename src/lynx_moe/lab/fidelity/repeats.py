"""Whether a model's cache can be repeated, so that many policies decode in one forward (`lockstep.decode_together`)."""

from copy import deepcopy
from typing import Any

import torch
from torch.nn import functional as F

from lynx_moe.engines.transformers.cache import repeat
from lynx_moe.lab.fidelity.lockstep import compare, left_padded, positions, prefill, step_of

LENGTHS, COPIES, STEPS = (9, 6), 3, 3
NEAR = 0.03  # of how far the two sequences are apart: rounding is far below it, another sequence's state at it or above

REFUSED = "so policies cannot decode side by side; use `lynx-moe fidelity`, which decodes them one by one"


@torch.inference_mode()
def check(model: Any) -> None:
    """Decodes two short sequences, and copies of them beside a repeated cache, with the model's own routing.

    Raises ValueError where the copies get other answers, or none: their forward would not be the model's.
    """
    device = next(model.parameters()).device
    tokens = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    rows = [torch.randint(1, size, (length + STEPS,), generator=tokens).tolist() for length in LENGTHS]
    ids_BL, mask_BL = (part.to(device) for part in left_padded([row[:-STEPS] for row in rows]))
    cache = prefill(model, ids_BL, mask_BL)
    own = deepcopy(cache)
    name = type(model).__name__
    try:
        repeat(own, len(rows), COPIES)
        for step in range(STEPS):
            mask_BL = F.pad(mask_BL, (0, 1), value=1)
            given = {"input_ids": torch.tensor([[row[step - STEPS]] for row in rows], device=device)}
            given |= {"attention_mask": mask_BL, "position_ids": positions(mask_BL)[:, -1:]}
            truth_BV = step_of(model, given, cache)[:, 0]
            copies_BV = step_of(model, {key: part.repeat(COPIES, 1) for key, part in given.items()}, own)[:, 0]
            apart = kl(truth_BV, truth_BV.flip(0))
            if not kl(truth_BV.repeat(COPIES, 1), copies_BV) <= NEAR * apart:
                raise ValueError(f"{name}: sequences beside a repeated cache get other answers than alone, {REFUSED}")
    except (AttributeError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name}: its cache cannot be repeated ({error}), {REFUSED}") from error


def kl(truth_BV: torch.Tensor, other_BV: torch.Tensor) -> float:
    """The largest divergence of a row, in nats."""
    following = torch.zeros(len(truth_BV), dtype=torch.long, device=truth_BV.device)
    return float(compare(truth_BV, other_BV, following)[0].max())
