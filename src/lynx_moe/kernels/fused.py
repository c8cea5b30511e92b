"""`priced` on CPUs, compiled by numba, which vLLM brings: the whole decision and its counts in one call.

A real step's weights sweep the caches between two decisions, so what costs is what is touched: Python objects above
all. Hence one call that takes addresses, and loops over T x K slots. Without numba the definition is taken.
"""

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lynx_moe.routing import Routing, Rows

BITS = (torch.bfloat16, torch.float32)  # whose infinities `loops.py` knows


@cache
def loops() -> Any:
    """The compiled function; None without numba. The first call of all compiles for some seconds, or reads what an
    earlier process has left in numba's cache."""
    if importlib.util.find_spec("numba") is None:
        return None
    _open_llvmlite()
    from lynx_moe.kernels.loops import by_address

    return by_address


def fits(logits_TE: Tensor) -> bool:
    """Whether the loops take a step of these logits."""
    here = logits_TE.device.type == "cpu" and logits_TE.dtype in BITS and len(logits_TE) > 0
    return here and loops() is not None


def priced(
    logits_TE: Tensor, rows: Rows | None, own: Routing, gain_E: Tensor | None, knobs: tuple[float, ...]
) -> Routing:
    """`Priced.route` by prices, with norm=own=power. knobs: as `loops.by_address` takes them, from `asks` on. ids have
    the type of own.ids."""
    if logits_TE.stride(1) != 1:
        logits_TE = logits_TE.contiguous()
    own_ids, own_weights = own.ids.contiguous(), own.weights.float().contiguous()
    if own_ids.dtype not in (torch.int32, torch.int64):
        own_ids = own_ids.long()
    ids, weights = torch.empty_like(own_ids), torch.empty_like(own_weights)
    rows = rows or Rows()
    given = (rows.valid, rows.remap, rows.price, rows.chance, rows.load_cost_E, gain_E)
    kept = [None if part is None else part.contiguous() for part in given]
    counts = loops()(
        *(logits_TE.data_ptr(), logits_TE.element_size(), logits_TE.stride(0)),
        *(own_ids.data_ptr(), own_ids.element_size(), own_weights.data_ptr()),
        *(0 if part is None else part.data_ptr() for part in kept),
        *(ids.data_ptr(), weights.data_ptr(), *logits_TE.shape, own_ids.shape[1], *knobs),
    )
    return Routing(ids, weights, counts)


def _open_llvmlite() -> None:
    """vLLM's CPU platform walks the attributes of all loaded modules and asks each for vars(). llvmlite's library
    answers that with a C function, and the next engine in this process would not start; behind an object of ours it
    does."""
    from llvmlite.binding import ffi

    class Library:
        def __getattr__(self, name: str, library: Any = ffi.lib) -> Any:
            return getattr(library, name)

    if not isinstance(vars(ffi.lib), dict):
        ffi.lib = Library()
