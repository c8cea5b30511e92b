"""Which experts stay, per policy: each function sees all rows and returns bool [C]. One program runs them.

They loop over the rows in tiles of R. `state` is the launch's scratch memory (`layout.py`), int64.
"""

import triton
import triton.language as tl

from lynx_moe.kernels import EDGE
from lynx_moe.kernels.gpu.layout import GAP, SUM, VOTER
from lynx_moe.kernels.gpu.rows import INF, LOWEST

ABOVE = tl.constexpr(EDGE)
MIX = tl.constexpr(0x2545F4914F6CDD1D)  # policies/random.py
CHUNK = tl.constexpr(32)


@triton.jit
def ahead(state, key, expert, real, E: tl.constexpr):
    """int32 [C]: how many experts have a larger int64 key, equals counting if their id is lower; 0 the first place.

    The keys pass through memory, so that no tile of E x E is needed.
    """
    tl.debug_barrier()
    tl.store(state + SUM * E + 8 + expert, key, mask=real)
    tl.debug_barrier()
    place = tl.zeros_like(expert)
    for start in range(0, E, CHUNK):
        other = start + tl.arange(0, CHUNK)
        value = tl.load(state + SUM * E + 8 + other, mask=other < E, other=LOWEST)
        before = (value[None, :] > key[:, None]) | (
            (value[None, :] == key[:, None]) & (other[None, :] < expert[:, None])
        )
        place += tl.sum((before & (other < E)[None, :]).to(tl.int32), 1)
    return place


@triton.jit
def binned(choice, allowed, BIASED: tl.constexpr):
    """What `lynx` bins, -inf where the row may not go, and each row's largest."""
    value = choice
    if BIASED:
        value = tl.log(tl.maximum(choice, 1e-30).to(tl.float64)).to(tl.float32)
    value = tl.where(allowed, value, -INF)
    return value, tl.max(value, 1)


@triton.jit
def gap(value, column, RANK: tl.constexpr):
    """float32 [R]: the distance from the row's largest value to the one RANK places below it."""
    top = tl.max(value, 1)
    last = top
    for _ in range(RANK):
        first = tl.min(tl.where(value == last[:, None], column[None, :], value.shape[1]), 1)
        value = tl.where(column[None, :] == first[:, None], -INF, value)
        last = tl.max(value, 1)
    return top - last


@triton.jit
def open_alpha(state, T, voters, E: tl.constexpr, BETA: tl.constexpr, TP: tl.constexpr):
    """`lynx`'s alpha where it is left open: EDGE * BETA / the median of the voters' gaps, which are in memory."""
    row = tl.arange(0, TP)
    votes = tl.load(state + VOTER * E + 8 + row, mask=row < T, other=0) != 0
    bits = tl.load(state + GAP * E + 8 + T + row, mask=votes, other=0).to(tl.int32)
    sorted_gap = tl.sort(tl.where(votes, bits.to(tl.float32, bitcast=True), INF))
    middle = tl.maximum((voters - 1) // 2, 0)
    depth = tl.sum(tl.where(row == middle, sorted_gap, 0.0), 0)
    return tl.div_rn(tl.full((), BETA * ABOVE, tl.float32), tl.minimum(tl.maximum(depth, 1e-6), 1e6))


@triton.jit
def bins(value, top, alpha, BETA: tl.constexpr):
    """int32 [R, C]: 0 the favourite's, -BETA the last."""
    return tl.maximum(tl.ceil(alpha * (value - top[:, None])), -BETA).to(tl.int32)


@triton.jit
def hashed(value):
    """`policies.random.hashed`."""
    for _ in tl.static_range(2):
        value = value * MIX
        value = value ^ (value >> 29)
    return value & 0x7FFFFFFFFFFFFFFF


@triton.jit
def drawn_keep(state, count, number, seed, expert, real, E: tl.constexpr):
    """`policies.random`: the experts with votes whose draws are the `number` largest."""
    one_up = expert.to(tl.int64) + 1
    mixed = tl.sum(tl.where(real, count * hashed(one_up + seed), 0), 0)
    draw = tl.where(real, tl.where(count > 0, hashed(one_up + hashed(mixed)), -1), LOWEST)
    place = ahead(state, draw, expert, real, E)
    least = tl.max(tl.where(real & (place == tl.minimum(number, E) - 1), draw, LOWEST), 0)
    return draw >= least
