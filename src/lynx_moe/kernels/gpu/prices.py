"""`priced`: which experts stay, and rows that do without the others.

What losing an expert adds to the harm is summed over the voters' own T x K slots by atomic additions, so a pass costs
the slots and not rows times experts. They are float64 and compared as float32: the order of the rows, which atomics
leave open, could show only where a sum lies within 2**-50 of the price. Slots keep nothing from pass to pass: what a
row has lost follows from the experts that are gone, in memory.
"""

import triton
import triton.language as tl

from lynx_moe.kernels.gpu.layout import AFTER, KEEP, SUM, VOTER
from lynx_moe.kernels.gpu.rows import INF, flags, order_key
from lynx_moe.kernels.gpu.votes import ahead

MOST = tl.constexpr(1e30)  # policies/priced.py


@triton.jit
def middle_price(prices, state, T, voters, E: tl.constexpr, TP: tl.constexpr):
    """float32 []: the voters' middle price, the upper one of an even number."""
    row = tl.arange(0, TP)
    votes = tl.load(state + 8 + VOTER * E + row, mask=row < T, other=0) != 0
    asked = tl.minimum(tl.load(prices + row, mask=votes, other=0.0), MOST)
    in_order = tl.sort(tl.where(votes, asked, INF))
    return tl.sum(tl.where(row == voters // 2, in_order, 0.0), 0)


@triton.jit
def worth(
    own_ids, own_weights, gain, prices, chances, costs, state, T, middle, part, number, expert, real, free,
    E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, S: tl.constexpr, PASSES: tl.constexpr, STEEP: tl.constexpr,
    GAINS: tl.constexpr, SLOPE: tl.constexpr, COUNTED: tl.constexpr, MIXED: tl.constexpr, CHANCES: tl.constexpr,
    COSTS: tl.constexpr,
):  # fmt: skip
    """`Priced.keep` with the donated ones: bool [C]. COUNTED: by `number` instead of a price; SUM then holds the votes.
    MIXED: rows have prices of their own, and `middle` is the middle one; SUM then holds their harm. CHANCES: harm is
    multiplied by a row's chance. COSTS: an expert's price is multiplied by what its load costs. part: of the price,
    what is asked.

    KEEP and AFTER are overwritten. S: rows of a tile of slots."""
    keep_at, slot = state + 8 + KEEP * E, tl.arange(0, KP)
    harm_at = (state + 8 + AFTER * E).to(tl.pointer_type(tl.float64))
    mixed_at = (state + 8 + SUM * E).to(tl.pointer_type(tl.float64))
    stays, mixed, price = real, real, middle * part
    if COSTS:
        price = price * tl.load(costs + expert, mask=real, other=1.0)
    if COUNTED:
        stays = tl.load(state + 8 + SUM * E + expert, mask=real, other=0) != 0
    tl.debug_barrier()
    tl.store(keep_at + expert, tl.full(expert.shape, 1, tl.int64), mask=real)
    for turn in range(PASSES):
        tl.store(harm_at + expert, tl.zeros(expert.shape, tl.float64), mask=real)
        if MIXED:
            tl.store(mixed_at + expert, tl.zeros(expert.shape, tl.float64), mask=real)
        tl.debug_barrier()
        for start in range(0, T, S):
            row = start + tl.arange(0, S)
            votes = flags(state + 8 + VOTER * E, row, row < T, True)
            at, inside = row[:, None] * K + slot[None, :], votes[:, None] & (slot < K)[None, :]
            own = tl.load(own_ids + at, mask=inside, other=0).to(tl.int64)
            value = tl.load(own_weights + at, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
            value = value / tl.maximum(tl.sum(value, 1), 1e-20)[:, None]
            share = value
            if GAINS:
                value = value * tl.load(gain + own, mask=inside, other=0.0)
            value = value * value
            for _ in tl.static_range(SLOPE):
                value = value * (K * share)
            stayed = tl.load(keep_at + own, mask=inside, other=1) != 0
            lost = tl.sum(tl.where(stayed, 0.0, value), 1)[:, None]
            cube = value * (3 * lost * (lost + value) + value * value)
            added = value + STEEP * cube
            if CHANCES:
                added = added * tl.load(chances + row, mask=votes, other=1.0).to(tl.float64)[:, None]
            tl.atomic_add(harm_at + own, added, mask=inside, sem="relaxed")
            if MIXED:
                asked = tl.minimum(tl.load(prices + row, mask=votes, other=1.0), MOST).to(tl.float64)
                at_price = added * (middle.to(tl.float64) / asked)[:, None]
                tl.atomic_add(mixed_at + own, at_price, mask=inside, sem="relaxed")
        tl.debug_barrier()
        harm = tl.load(harm_at + expert, mask=real, other=0.0).to(tl.float32)
        if COUNTED:
            spare = tl.maximum(tl.sum((stays & real).to(tl.int64), 0) - number, 0)
            place = ahead(state, order_key(harm, stays, expert, E), expert, real, E)
            stays = stays & (place < number + spare - (spare >> (PASSES - 1 - turn)))
        else:
            stays = stays & (harm * (1 << (PASSES - 1 - turn)) > price)
            if MIXED:
                harm = tl.load(mixed_at + expert, mask=real, other=0.0).to(tl.float32)
                mixed = mixed & (harm * (1 << (PASSES - 1 - turn)) > price)
        tl.debug_barrier()
        tl.store(keep_at + expert, (stays | free).to(tl.int64), mask=real)
    return mixed | free if MIXED else stays | free


@triton.jit
def rescue(own_ids, own_weights, state, T, E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, S: tl.constexpr):
    """Sets KEEP to 2 for the heaviest expert of every voter of whose experts none stays."""
    keep_at, slot = state + 8 + KEEP * E, tl.arange(0, KP)
    for start in range(0, T, S):
        row = start + tl.arange(0, S)
        votes = flags(state + 8 + VOTER * E, row, row < T, True)
        at, inside = row[:, None] * K + slot[None, :], votes[:, None] & (slot < K)[None, :]
        own = tl.load(own_ids + at, mask=inside, other=0).to(tl.int32)
        weight = tl.load(own_weights + at, mask=inside, other=-INF).to(tl.float32)
        some = tl.max((tl.load(keep_at + own, mask=inside, other=0) == 1).to(tl.int32), 1) != 0
        heaviest = inside & (weight == tl.max(weight, 1)[:, None])
        first = tl.min(tl.where(heaviest, own, E - 1), 1)
        tl.store(keep_at + first, tl.full((S,), 2, tl.int64), mask=votes & ~some)


@triton.jit
def left_over(own, own_weight, stays, live, loaded, expert, power, E: tl.constexpr):
    """`Priced.propose` and `fill_slots` of one row: (ids, weights) [KP]; stays: bool [KP], of its own experts; loaded:
    bool [C], of all."""
    some = tl.max((stays & live).to(tl.int32), 0) != 0
    candidate = live & (stays | ~some)
    heaviest = tl.max(tl.where(candidate, own_weight, -INF), 0)
    first = tl.min(tl.where(candidate & (own_weight == heaviest), own.to(tl.int32), E - 1), 0)
    stays = live & (stays | (own == first))
    whole, part = own_weight.to(tl.float64), tl.where(stays, own_weight, 0.0).to(tl.float64)
    growth = tl.maximum(tl.sum(whole, 0), 1e-20) / tl.maximum(tl.sum(part, 0), 1e-20)
    part = part * tl.exp(power * tl.log(growth))
    part = part.to(tl.float32)
    is_own = (own.to(tl.int32)[:, None] == expert[None, :]) & live[:, None]
    chosen = tl.max(is_own.to(tl.int32), 0) != 0
    spare = loaded & (tl.max((is_own & stays[:, None]).to(tl.int32), 0) == 0)
    other, again = (spare & ~chosen).to(tl.int32), (spare & chosen).to(tl.int32)
    place = tl.where(other != 0, tl.cumsum(other, 0), tl.sum(other, 0) + tl.cumsum(again, 0))
    turn = tl.cumsum((live & ~stays).to(tl.int32), 0)
    fits = (turn[:, None] == place[None, :]) & spare[None, :]
    found = tl.max(tl.where(fits, expert[None, :], -1), 1)
    found = tl.where(found < 0, tl.min(tl.where(stays, own.to(tl.int32), E - 1), 0), found)
    return tl.where(stays, own, found.to(own.dtype)), part
