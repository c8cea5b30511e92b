"""The second of a decision's two kernels: a program per row chooses its experts anew; the last one settles the step.

The last program to finish sees what all rows together load. Where that is more than before, it puts the model's own
routing back: that is `Policy`'s guard, without a third launch.
"""

import triton
import triton.language as tl

from lynx_moe.kernels.gpu.layout import ACTS, AFTER, BEFORE, CHANGED, FIRST, KEEP, TICKET, VOTER
from lynx_moe.kernels.gpu.prices import left_over
from lynx_moe.kernels.gpu.rows import INF, LOWEST, columns, flags, logits_of, order_key, preference, scores


@triton.jit
def weights_of(
    logit, share, live, mass, scale, factor, SCORING: tl.constexpr, RENORM: tl.constexpr
):  # fmt: skip
    """`routing.weigh` on one row's chosen experts, float32 [KP]. mass: what its own weights sum to."""
    if SCORING == "softmax":
        top = tl.max(tl.where(live, logit, -INF), 0).to(tl.float64)
        part = tl.where(live, tl.exp(logit.to(tl.float64) - top), 0.0)
        part = part / tl.sum(part, 0)
    else:
        part = tl.where(live, share, 0.0).to(tl.float64)
        if RENORM:
            part = part / tl.maximum(tl.sum(part, 0), 1e-20)
    part = part * mass if SCORING == "softmax" and not RENORM else part * scale * factor
    return part.to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def reroute_kernel(
    logits, stride, own_ids, own_weights, valid, bias, expert_scale, state, ids, weights, counts, T, scale, power,
    VALID: tl.constexpr, E: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
    GP: tl.constexpr, MP: tl.constexpr, TOPG: tl.constexpr, SCORING: tl.constexpr, BIASED: tl.constexpr,
    RENORM: tl.constexpr, FACTORS: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """`routing.reroute` with `policies.policy._settle`. counts: int64 [4], see `Routing`."""
    expert, real = columns(G, M, GP, MP)
    slot = tl.arange(0, KP)
    live = slot < K
    this = tl.program_id(0) + tl.arange(0, 1)
    keep_at, after_at = state + 8 + KEEP * E, state + 8 + AFTER * E
    is_valid = flags(valid, this, this < T, VALID)  # [1]
    row = tl.where(is_valid, this.to(tl.int64), tl.load(state + FIRST))  # padding repeats the first valid row
    at = tl.sum(row, 0) * K + slot
    own = tl.load(own_ids + at, mask=live, other=0)
    new, new_weight = own, tl.load(own_weights + at, mask=live, other=0.0).to(tl.float32)
    own_weight = new_weight
    votes = tl.load(state + 8 + VOTER * E + row) * tl.load(state + ACTS)  # [1]
    kept = tl.load(keep_at + own, mask=live & (votes != 0), other=1) == 1
    gone = tl.min(kept.to(tl.int32), 0) == 0
    if DROPS:
        if gone:
            loaded = (tl.load(keep_at + expert, mask=real, other=0) != 0) & real
            new, new_weight = left_over(own, own_weight, kept, live, loaded, expert, power, E)
    elif gone:
        x = logits_of(logits, stride, row, row >= 0, expert, real)
        choice, allowed = preference(x, bias, expert, real, G, M, GP, MP, TOPG, SCORING, BIASED)
        stays = (tl.load(keep_at + expert, mask=real, other=0) != 0)[None, :] & (choice > -INF)
        key = order_key(choice, tl.where(allowed, 1 + stays.to(tl.int64), 0), expert[None, :], E)
        key = tl.max(tl.where(real[None, :], key, LOWEST), 0)
        pick = tl.zeros_like(slot)
        for step in range(K):
            best = tl.max(key, 0)
            pick = tl.where(slot == step, E - 1 - (best & 0xFFFF).to(tl.int32), pick)
            key = tl.where(key == best, LOWEST, key)
        again = (own.to(tl.int32)[:, None] == pick[None, :]) & live[None, :]
        again = tl.max(again.to(tl.int32), 1) | (slot >= K).to(tl.int32)
        if tl.min(again, 0) == 0:
            logit = tl.load(logits + tl.sum(row, 0) * stride + pick, mask=live, other=0.0).to(tl.float32)
            share = tl.max(scores(logit[None, :], SCORING), 0)
            factor = tl.full((KP,), 1.0, tl.float64)
            if FACTORS:
                factor = tl.load(expert_scale + pick, mask=live, other=0.0).to(tl.float64)
            mass = tl.sum(own_weight.to(tl.float64), 0)
            new = pick.to(own.dtype)
            new_weight = weights_of(logit, share, live, mass, scale, factor, SCORING, RENORM)
    moved = tl.max(((new != own) & live & is_valid).to(tl.int32), 0)
    if moved != 0:
        tl.atomic_add(state + CHANGED, 1)
    to = tl.program_id(0) * K + slot
    tl.store(ids + to, new, mask=live)
    tl.store(weights + to, tl.where(is_valid, new_weight, 0.0), mask=live)
    tl.store(after_at + new, tl.full((KP,), 1, tl.int64), mask=live & is_valid)
    tl.debug_barrier()  # this program's stores are done before its ticket is drawn
    if tl.atomic_add(state + TICKET, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        before = tl.load(state + BEFORE)
        after = tl.sum(tl.load(after_at + expert, mask=real, other=0, volatile=True), 0)
        changed = tl.atomic_add(state + CHANGED, 0)
        if after > before:
            for other in range(T):
                ok = tl.full((), 1, tl.int32) != 0
                if VALID:
                    ok = tl.load(valid + other) != 0
                source = tl.where(ok, other, tl.load(state + FIRST)) * K + slot
                tl.store(ids + other * K + slot, tl.load(own_ids + source, mask=live), mask=live)
                weight = tl.where(ok, tl.load(own_weights + source, mask=live).to(tl.float32), 0.0)
                tl.store(weights + other * K + slot, weight, mask=live)
            after, changed = before, changed * 0
        tl.store(counts, before)
        tl.store(counts + 1, after)
        tl.store(counts + 2, changed)
        tl.store(counts + 3, (changed == 0).to(tl.int64))
