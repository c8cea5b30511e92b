"""A model's cache by what it is, not by its name: forwards and outputs of transformers 5.19 say `past_key_values`,
those of 5.24 `cache`, and some take either.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

NAMES = ("cache", "past_key_values", "cache_params")  # in code from a hub that annotates nothing


def cache_name(function: Callable[..., Any]) -> str | None:
    """The parameter that takes a cache: one that is annotated as some `...Cache`, or has such a name; None: none."""
    parameters = inspect.signature(function).parameters
    annotated = (name for name, parameter in parameters.items() if _names_a_cache(parameter.annotation))
    return next(annotated, None) or next((name for name in NAMES if name in parameters), None)


def cache_in(values: Iterable[Any]) -> Any | None:
    """The cache among arguments of a forward, or among the fields of its output. None: there is none."""
    return next((value for value in values if hasattr(value, "get_seq_length")), None)


def past_length(cache: Any) -> int | Tensor:
    """Tokens in a cache, a tensor of one number in a static one; 0 without one."""
    length: int | Tensor = 0 if cache is None else cache.get_seq_length()
    return length


def held_bytes(cache: Any) -> int:
    """Bytes of all tensors that a cache holds, its own and those of its layers."""
    return sum(tensor.nbytes for tensor in _tensors(cache, set()))


def repeat(cache: Any, batch: int, num: int) -> None:
    """The cache of `batch` sequences, 2 or more, becomes that of `num` times these, one after the other.

    `reorder_cache` is what every cache has, for beam search. What a model's own cache keeps beside it (DeepSeek-V4's
    buffers, MiniMax's linear states) is told by its first dimension. `lab/fidelity/repeats.py` proves it for a model.
    """
    order = torch.arange(batch).repeat(num)
    cache.reorder_cache(order)
    _reorder(cache, batch, order, set())


def _tensors(held: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor below `held`, once."""
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for part in held.values() if isinstance(held, dict) else held:
            yield from _tensors(part, seen)
    elif _is_model_code(held):
        yield from _tensors(vars(held), seen)


def _is_model_code(held: Any) -> bool:
    return type(held).__module__.partition(".")[0] in ("transformers", "transformers_modules")


def _reorder(held: Any, batch: int, order: Tensor, seen: set[int]) -> Any:
    """What takes the place of `held`: tensors with a row for each of the `batch` sequences get the new ones."""
    if isinstance(held, Tensor):
        return held.index_select(0, order.to(held.device)) if held.dim() and len(held) == batch else held
    if id(held) in seen:
        return held
    seen.add(id(held))
    if isinstance(held, tuple):
        return tuple(_reorder(part, batch, order, seen) for part in held)
    if isinstance(held, dict | list):
        places: Iterable[Any] = list(held) if isinstance(held, dict) else range(len(held))
        for place in places:
            held[place] = _reorder(held[place], batch, order, seen)
    elif _is_model_code(held):
        _reorder(vars(held), batch, order, seen)
    return held


def _names_a_cache(annotation: Any) -> bool:
    return "Cache" in (annotation.__name__ if isinstance(annotation, type) else str(annotation))
