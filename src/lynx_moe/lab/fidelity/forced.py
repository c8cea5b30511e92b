"""A vLLM logits processor that makes a request say what it is told, the true continuation, and compares on the way.

It runs in the worker that samples, where a step's logits are: those of the exact run are kept there, and of a policy's
only the four figures of each token travel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from lynx_moe.lab.fidelity.lockstep import compare

FORCED = "forced_token_ids"  # in a request's `extra_args`: {"ids": [...], "document": its number, "exact": bool}
Token = tuple[int, int]  # document, and place behind its prompt's last token
_TRUTH: dict[Token, Tensor] = {}  # log-probabilities [V]
_FOUND: dict[Token, Tensor] = {}  # [4]: the fields of `Effect`


class Forced(AdapterLogitsProcessor):  # type: ignore[misc]
    """vLLM makes one in every worker."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[[list[int], Tensor], Tensor] | None:
        forced = (params.extra_args or {}).get(FORCED)
        return None if forced is None else _Says(**forced)


class _Says:
    """ids: what is said, by place; the first follows the prompt, which no policy touches. exact: it is the truth."""

    def __init__(self, ids: list[int], document: int, *, exact: bool) -> None:
        self.ids, self.document, self.exact = ids, document, exact

    def __call__(self, output_ids: list[int], logits_V: Tensor) -> Tensor:
        place = len(output_ids)
        said, token = torch.tensor(self.ids[place], device=logits_V.device), (self.document, place)
        if place:
            told_V = logits_V.float().log_softmax(-1)
            if self.exact:
                _TRUTH[token] = told_V
            else:
                _FOUND[token] = torch.stack(compare(_TRUTH[token], told_V, said))
        return torch.full_like(logits_V, -torch.inf).index_fill_(0, said, 0.0)


def taken(_: Any) -> dict[Token, list[float]]:
    """In a worker: the figures since the last call; empty where nothing is sampled."""
    found = {token: figures.tolist() for token, figures in _FOUND.items()}
    _FOUND.clear()
    return found


def forget(_: Any) -> None:
    """In a worker: the truth about these documents is not needed any more."""
    _TRUTH.clear()
