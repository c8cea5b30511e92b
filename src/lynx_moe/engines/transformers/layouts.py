"""How routers hand over their choice: reading (logits, weights, ids) from an output, and writing new ones into it.

Shapes: T rows, E experts, K = top_k. What a layout does not name stays as the router returned it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """logits_TE as the router ranked them; weights_TK and ids_TK in any order that the experts accept."""

    logits: Tensor
    weights: Tensor
    ids: Tensor


class Layout(NamedTuple):
    """read(router, args, output) -> Choice; write(output, choice) -> the output with this choice in its own types.

    args are the positional arguments of the call; the logits are among them where a method only picks the experts.
    """

    read: Callable[[Any, tuple[Any, ...], Any], Choice]
    write: Callable[[Any, Choice], Any]


def places(weights: int, ids: int, logits: int | None = None, probabilities: int | None = None) -> Layout:
    """A tuple with these places. Softmax probabilities serve as logits: their logarithm differs by a constant. Neither:
    the logits are the call's last argument."""

    def read(_: Any, args: tuple[Any, ...], output: Any) -> Choice:
        if probabilities is not None:
            return Choice(output[probabilities].log(), output[weights], output[ids])
        return Choice(args[-1] if logits is None else output[logits], output[weights], output[ids])

    def write(output: Any, choice: Choice) -> Any:
        items = list(output)
        items[weights], items[ids] = choice.weights.to(items[weights].dtype), choice.ids.to(items[ids].dtype)
        return tuple(items)

    return Layout(read, write)


def _places(output: Any) -> tuple[int | None, int, int]:
    """Where a tuple has logits [T, E] (None: nowhere), weights [T, K] and ids [T, K]: versions differ in the order. The
    ids are whole numbers, and as wide as the weights, which stand beside them."""
    tensors = [place for place, part in enumerate(output) if isinstance(part, Tensor)]
    (ids,) = (place for place in tensors if not output[place].is_floating_point())
    floats = [place for place in tensors if place != ids]
    wide = [place for place in floats if output[place].shape[-1] == output[ids].shape[-1]]
    weights = min(wide, key=lambda place: abs(place - ids))
    return next((place for place in floats if place != weights), None), weights, ids


def _read_tuple(_: Any, args: tuple[Any, ...], output: Any) -> Choice:
    logits, weights, ids = _places(output)
    if logits is None:
        raise ValueError("its router returns no logits; a newer transformers may")
    return Choice(output[logits], output[weights], output[ids])


def _write_tuple(output: Any, choice: Choice) -> Any:
    _, weights, ids = _places(output)
    return places(weights, ids).write(output, choice)


def _read_dense(router: Any, _: tuple[Any, ...], output: Any) -> Choice:
    scores_TE, logits_TE = output
    ids_TK = logits_TE.topk(router.top_k, dim=1).indices
    return Choice(logits_TE, scores_TE.gather(1, ids_TK), ids_TK)


def _write_dense(output: Any, choice: Choice) -> Any:
    scores_TE, logits_TE = output
    return torch.zeros_like(scores_TE).scatter(1, choice.ids, choice.weights.to(scores_TE.dtype)), logits_TE


def _read_grouped(router: Any, _: tuple[Any, ...], output: Any) -> Choice:
    order_S, _, gates_S, _, logits_TE = output
    ids_TK = logits_TE.topk(router.top_k, dim=1).indices
    weights_TK = torch.empty_like(gates_S).scatter(0, order_S, gates_S).view_as(ids_TK)
    return Choice(logits_TE, weights_TK, ids_TK)


def _write_grouped(output: Any, choice: Choice) -> Any:
    _, _, gates_S, _, logits_TE = output
    order_S = choice.ids.flatten().sort().indices
    rows_S = order_S.div(choice.ids.shape[1], rounding_mode="trunc")
    sizes = choice.ids.flatten().bincount(minlength=logits_TE.shape[1]).tolist()
    return order_S, rows_S, choice.weights.to(gates_S.dtype).flatten()[order_S], sizes, logits_TE


TUPLE = Layout(_read_tuple, _write_tuple)
"""Logits, weights and ids in any order."""
PROBABILITIES_FIRST = places(probabilities=0, weights=1, ids=2)
WEIGHTS_IDS = places(weights=0, ids=1)
IDS_WEIGHTS = places(ids=0, weights=1)
DENSE = Layout(_read_dense, _write_dense)
"""Scores of all experts, zero where not chosen, and the logits. Every expert computes every row."""
GROUPED = Layout(_read_grouped, _write_grouped)
"""The S = T * K slots sorted by expert: order, rows, weights, slots per expert (a list), and the logits."""
