"""The first of a decision's two kernels: one program finds out who votes, and which experts stay.

It leaves in `state` (`layout.py`): KEEP, 1 for the experts that stay, donated ones included, 2 for those that a row
which would lose everything keeps for itself; VOTER, the rows that vote; ACTS,
whether there is anything to share; FIRST, the first valid row; BEFORE, how many experts the model's own routing loads;
and zeros for the second kernel.
"""

import triton
import triton.language as tl

from lynx_moe.kernels.gpu.layout import ACTS, AFTER, BEFORE, CHANGED, FIRST, GAP, KEEP, SUM, TICKET, VOTER
from lynx_moe.kernels.gpu.prices import middle_price, rescue, worth
from lynx_moe.kernels.gpu.rows import (
    LOWEST,
    columns,
    first_of,
    flags,
    logits_of,
    order_key,
    preference,
    scores,
    silenced,
    usable,
)
from lynx_moe.kernels.gpu.votes import ahead, binned, bins, drawn_keep, gap, open_alpha


@triton.jit(do_not_specialize=["T", "number", "seed"])
def keep_kernel(
    logits, stride, own_ids, own_weights, valid, remap, prices, chances, costs, bias, given, state, T, alpha, number,
    seed, price, depth, alone,
    MODE: tl.constexpr, OPEN: tl.constexpr, BETA: tl.constexpr, RANK: tl.constexpr, MAX_BASE: tl.constexpr,
    PINNED: tl.constexpr, VALID: tl.constexpr, REMAP: tl.constexpr, E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    G: tl.constexpr, M: tl.constexpr, GP: tl.constexpr, MP: tl.constexpr, TOPG: tl.constexpr, SCORING: tl.constexpr,
    BIASED: tl.constexpr, R: tl.constexpr, TP: tl.constexpr, S: tl.constexpr, PASSES: tl.constexpr,
    STEEP: tl.constexpr, GAINS: tl.constexpr, SLOPE: tl.constexpr, PRICES: tl.constexpr, CHANCES: tl.constexpr,
    COSTS: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """MODE is a `Vote.rule`; PINNED: how many first experts of every voter stay in any case."""
    expert, real = columns(G, M, GP, MP)
    column, slot = tl.arange(0, GP * MP), tl.arange(0, KP)
    keep_at, after_at, sum_at = state + 8 + KEEP * E, state + 8 + AFTER * E, state + 8 + SUM * E
    zero_C = tl.zeros_like(expert).to(tl.int64)
    for section in tl.static_range(3):
        tl.store(state + 8 + section * E + expert, zero_C, mask=real)
    tl.debug_barrier()
    voters, first = tl.full((), 0, tl.int32), tl.full((), 2**30, tl.int32)
    for start in range(0, T, R):
        row = start + tl.arange(0, R)
        here = row < T
        is_valid = flags(valid, row, here, VALID)
        x = logits_of(logits, stride, row, here, expert, real)
        votes = usable(x, real) & is_valid & flags(remap, row, here, REMAP)
        if PRICES:
            votes = votes & (tl.load(prices + row, mask=here, other=0.0) > 0)
        tl.store(state + 8 + VOTER * E + row, votes.to(tl.int64), mask=here)
        inside = is_valid[:, None] & (slot < K)[None, :]
        own = tl.load(own_ids + row[:, None] * K + slot[None, :], mask=inside, other=0).to(tl.int64)
        one = tl.full((R, KP), 1, tl.int64)
        tl.store(after_at + own, one, mask=inside)  # for now: what the model's own routing loads
        tl.store(keep_at + own, one, mask=inside & ~votes[:, None])
        if MODE == "popular" or MODE == "drawn" or MODE == "harm":
            tl.atomic_add(sum_at + own, one, mask=inside & votes[:, None], sem="relaxed")
        if OPEN:
            x = silenced(x, votes, real)
            choice, allowed = preference(x, bias, expert, real, G, M, GP, MP, TOPG, SCORING, BIASED)
            value, _ = binned(choice, allowed, BIASED)
            bits = gap(value, column, RANK).to(tl.int32, bitcast=True)
            tl.store(state + 8 + GAP * E + T + row, bits.to(tl.int64), mask=here)
        voters += tl.sum(votes.to(tl.int32), 0)
        first = tl.minimum(first, tl.min(tl.where(is_valid, row, 2**30), 0))
    tl.debug_barrier()
    before = tl.sum(tl.load(after_at + expert, mask=real, other=0), 0)
    free = tl.load(keep_at + expert, mask=real, other=0) != 0
    keep, chosen = free, tl.zeros_like(expert)
    total, weight = zero_C, zero_C.to(tl.float64)
    if MODE == "bins":
        base = tl.minimum(voters, MAX_BASE).to(tl.int64)
        if OPEN:
            alpha = open_alpha(state, T, voters, E, BETA, TP)
    if MODE == "bins" or MODE == "scores":  # one more pass: the voters' sums
        for start in range(0, T, R):
            row = start + tl.arange(0, R)
            votes = flags(state + 8 + VOTER * E, row, row < T, True)
            x = silenced(logits_of(logits, stride, row, row < T, expert, real), votes, real)
            choice, allowed = preference(x, bias, expert, real, G, M, GP, MP, TOPG, SCORING, BIASED)
            if MODE == "bins":
                value, top = binned(choice, allowed, BIASED)
                level = bins(value, top, alpha, BETA) + BETA
                power = tl.full((R, GP * MP), 1, tl.int64)
                for step in tl.static_range(BETA):
                    power = tl.where(level > step, power * base, power)
                total += tl.sum(tl.where(allowed & votes[:, None], power, 0), 0)
            else:
                share = scores(x, SCORING).to(tl.float64)
                weight += tl.sum(tl.where(allowed & votes[:, None], share, 0.0), 0)
    if MODE == "bins":
        place = ahead(state, total, expert, real, E)
    if MODE == "bins" or PINNED > 0:  # and another: every voter's own choice
        for start in range(0, T, R):
            row = start + tl.arange(0, R)
            votes = flags(state + 8 + VOTER * E, row, row < T, True)
            x = silenced(logits_of(logits, stride, row, row < T, expert, real), votes, real)
            choice, allowed = preference(x, bias, expert, real, G, M, GP, MP, TOPG, SCORING, BIASED)
            picks = allowed & False
            if MODE == "bins":
                value, top = binned(choice, allowed, BIASED)
                key = (bins(value, top, alpha, BETA) * E - place[None, :]).to(tl.int64)
                picks = first_of(tl.where(allowed, key, LOWEST + expert.to(tl.int64)[None, :]), K)
            if PINNED > 0:
                key = order_key(choice, allowed, expert[None, :], E)
                picks = picks | first_of(tl.where(real[None, :], key, LOWEST), PINNED)
            chosen = tl.maximum(chosen, tl.max((picks & votes[:, None]).to(tl.int32), 0))
        keep = keep | (chosen != 0)
    if MODE == "scores":
        key = order_key(weight.to(tl.float32), chosen, expert, E)
        keep = keep | (ahead(state, key, expert, real, E) < number)
    if MODE == "popular":
        count = tl.load(sum_at + expert, mask=real, other=0)
        half = tl.maximum((tl.sum((count > 0).to(tl.int32), 0) + 1) // 2, K)
        keep = keep | (ahead(state, count, expert, real, E) < tl.where(number > 0, number, half))
    if MODE == "drawn":
        keep = keep | drawn_keep(state, tl.load(sum_at + expert, mask=real, other=0), number, seed, expert, real, E)
    if MODE == "given":
        keep = keep | (tl.load(given + expert, mask=real, other=0) != 0)
    acts = (voters > 1) | (tl.sum((free & real).to(tl.int32), 0) > 0)
    if MODE == "price" or MODE == "harm":
        if MODE == "price" and PRICES:
            price = middle_price(prices, state, T, voters, E, TP)
        part = depth * tl.where(acts, 1.0, alone)
        keep = worth(
            own_ids, own_weights, given, prices, chances, costs, state, T, price, part, number, expert, real, free, E,
            K, KP, S, PASSES, STEEP, GAINS, SLOPE, MODE == "harm", PRICES and MODE == "price", CHANCES, COSTS,
        )  # fmt: skip
    tl.debug_barrier()
    tl.store(keep_at + expert, keep.to(tl.int64), mask=real)
    tl.store(after_at + expert, zero_C, mask=real)
    if MODE == "price" or MODE == "harm":
        tl.debug_barrier()
        rescue(own_ids, own_weights, state, T, E, K, KP, S)
    tl.store(state + TICKET, tl.full((), 0, tl.int64))
    tl.store(state + CHANGED, tl.full((), 0, tl.int64))
    tl.store(state + BEFORE, before)
    tl.store(state + FIRST, tl.where(first < 2**30, first, 0).to(tl.int64))
    tl.store(state + ACTS, (acts | ALONE).to(tl.int64))
