"""`priced` in one pass of compiled loops. Imports numba, so it is reached through `fused.py` only.

Tensors come as addresses: wrapping one costs more than deciding. Plain loops over scalars compile in seconds, array
expressions in many. Sums run in the order of the definition (`policies/priced.py`), in float64.

Shapes: T rows, V voters, E experts, K = top_k.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

compiled = njit(cache=True, error_model="numpy")
DROPPED, KEPT, RESCUED = 0, 1, 2  # an expert of the step; RESCUED: loaded for a row that would lose everything
BAD16, NEVER16 = 0x7F80, 0xFF80  # of bfloat16: the bits that are all 1 in infinities and NaN; minus infinity
BAD32, NEVER32 = 0x7F800000, 0xFF800000  # of float32


@intrinsic
def pointer(typing: Any, address: Any) -> Any:
    """An integer as the address that it is."""

    def cast(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), cast


@compiled
def by_address(
    logits, logit_bytes, stride, own_ids, id_bytes, own_weights, valid, remap, price, chance, cost, gain, ids, weights,
    num_rows, num_experts, top_k, asks, power, steep, first_share, alone, most, slope, part,
):  # fmt: skip
    """`Priced.route` on tensors by their addresses, 0 for None; returns (experts before, after, rows that changed).

    stride: of a row of logits, in logits."""
    num_slots, span = num_rows * top_k, (num_rows - 1) * stride + num_experts
    votes, own = np.zeros(num_rows, dtype=np.bool_), np.empty(num_slots, dtype=np.int64)
    bits16, bits32 = carray(pointer(logits), span, np.uint16), carray(pointer(logits), span, np.uint32)
    narrow, wide = carray(pointer(own_ids), num_slots, np.int32), carray(pointer(own_ids), num_slots, np.int64)
    for t in range(num_rows):
        bad, good = 0, 0
        for at in range(t * stride, t * stride + num_experts):
            if logit_bytes == 2:
                one, special = np.uint32(bits16[at]), (bits16[at] & BAD16) == BAD16
                bad += special and one != NEVER16
            else:
                one, special = bits32[at], (bits32[at] & BAD32) == BAD32
                bad += special and one != NEVER32
            good += not special
        votes[t] = bad == 0 and good > 0
    for slot in range(num_slots):
        own[slot] = narrow[slot] if id_bytes == 4 else wide[slot]
    own_weight = carray(pointer(own_weights), num_slots, np.float32)
    new_weight = carray(pointer(weights), num_slots, np.float32)
    valid_T, remap_T = carray(pointer(valid), num_rows, np.bool_), carray(pointer(remap), num_rows, np.bool_)
    price_T, gain_E = carray(pointer(price), num_rows, np.float32), carray(pointer(gain), num_experts, np.float64)
    chance_T, cost_E = carray(pointer(chance), num_rows, np.float32), np.ones(num_experts, dtype=np.float32)
    if cost:
        cost_E = carray(pointer(cost), num_experts, np.float32)
    first_valid, num_voters, donates = -1, 0, False
    status, keeps = np.zeros(num_experts, dtype=np.int64), np.zeros(num_experts, dtype=np.int64)
    before = 0
    for t in range(num_rows):
        if valid and not valid_T[t]:
            votes[t] = False
            continue
        first_valid = t if first_valid < 0 else first_valid
        if (remap and not remap_T[t]) or (price and not price_T[t] > 0):
            votes[t] = False
        num_voters += votes[t]
        donates |= not votes[t]
        for slot in range(t * top_k, (t + 1) * top_k):
            before += status[own[slot]] == DROPPED
            status[own[slot]] = KEPT
            keeps[own[slot]] |= not votes[t]
    new, after, changed = own.copy(), before, 0
    for slot in range(num_slots):
        new_weight[slot] = own_weight[slot]
    if num_voters:
        value, factor, counts = np.zeros(num_slots), np.ones(num_rows), np.ones(num_rows)
        middle = np.float32(asks)
        if price:
            middle = middle_price(price_T, votes, num_voters, np.float32(most), factor)
        middle = np.float32(middle * np.float32(part))
        if num_voters == 1 and not donates:
            middle = np.float32(middle * np.float32(alone))
        for t in range(num_rows):
            if chance:
                counts[t] = chance_T[t]
            whole = 0.0
            for slot in range(t * top_k, (t + 1) * top_k):
                whole += own_weight[slot]
            for slot in range(t * top_k, (t + 1) * top_k):
                if votes[t]:
                    share = own_weight[slot] / max(whole, 1e-20)
                    norm = share * gain_E[own[slot]] if gain else share
                    value[slot] = norm * norm
                    for _ in range(slope):
                        value[slot] *= top_k * share
        keep(own, value, factor, counts, votes, keeps, status, middle, cost_E, steep, first_share)
        changed = settle(own, own_weight, votes, status, power, new, new_weight)
        after = 0
        for e in range(num_experts):
            after += status[e] != DROPPED
    out32, out64 = carray(pointer(ids), num_slots, np.int32), carray(pointer(ids), num_slots, np.int64)
    for t in range(num_rows):
        padding = valid and not valid_T[t]
        shift = (max(first_valid, 0) - t) * top_k if padding else 0
        for slot in range(t * top_k, (t + 1) * top_k):
            new_weight[slot] = 0.0 if padding else new_weight[slot]
            if id_bytes == 4:
                out32[slot] = new[slot + shift]
            else:
                out64[slot] = new[slot + shift]
    return before, after, changed


@compiled
def middle_price(price_T, votes, num_voters, most, factor):
    """The voters' middle price, the upper one of an even number; sets what it is over each voter's own price [T]."""
    asked, count = np.empty(num_voters, dtype=np.float32), 0
    for t in range(len(votes)):
        if votes[t]:
            one, place = min(price_T[t], most), count
            while place > 0 and asked[place - 1] > one:
                asked[place] = asked[place - 1]
                place -= 1
            asked[place] = one
            count += 1
    middle = asked[num_voters // 2]
    for t in range(len(votes)):
        if votes[t]:
            factor[t] = np.float64(middle) / np.float64(min(price_T[t], most))
    return middle


@compiled
def keep(own, value, factor, counts, votes, keeps, status, price, cost_E, steep, first_share):
    """`Priced.keep`: status [E] of what is loaded becomes KEPT, also where `keeps` says so, or DROPPED.

    own, value: by slots, value 0 for rows that do not vote. counts: by rows, what their harm is multiplied by."""
    num_rows, num_experts = len(votes), len(status)
    top_k = len(own) // num_rows
    harm, mixed_harm = np.zeros(num_experts), np.zeros(num_experts)
    common, lost = np.ones(num_experts, dtype=np.int64), np.zeros(num_rows)
    share = first_share
    while share <= 1.0:
        for t in range(num_rows):
            if votes[t]:
                x = lost[t]
                for slot in range(t * top_k, (t + 1) * top_k):
                    one = value[slot]
                    added = (one + steep * (one * (3 * x * (x + one) + one * one))) * counts[t]
                    harm[own[slot]] += added
                    mixed_harm[own[slot]] += added * factor[t]
        for e in range(num_experts):
            bound = np.float32(np.float32(share * price) * cost_E[e])
            common[e] &= np.float32(harm[e]) > bound
            if not keeps[e] and not np.float32(mixed_harm[e]) > bound:
                status[e] = DROPPED
            harm[e], mixed_harm[e] = 0.0, 0.0
        for t in range(num_rows):
            if votes[t]:
                lost[t] = 0.0
                for slot in range(t * top_k, (t + 1) * top_k):
                    if not (common[own[slot]] or keeps[own[slot]]):
                        lost[t] += value[slot]
        share *= 2.0


@compiled
def settle(own, own_weight, votes, status, power, new, new_weight):
    """`Priced.propose` and `fill_slots`, by slots, into new and new_weight, which hold the model's own. Returns of
    how many rows an id changed."""
    num_rows, num_experts = len(votes), len(status)
    top_k = len(own) // num_rows
    first = np.full(num_rows, -1, dtype=np.int64)  # what a voter keeps in any case
    for t in range(num_rows):
        some, heaviest = False, np.float32(-np.inf)
        for slot in range(t * top_k, (t + 1) * top_k):
            some |= status[own[slot]] == KEPT
        for slot in range(t * top_k, (t + 1) * top_k):
            if votes[t] and (not some or status[own[slot]] == KEPT):
                weight = own_weight[slot]
                if first[t] < 0 or weight > heaviest or (weight == heaviest and own[slot] < first[t]):
                    heaviest, first[t] = weight, own[slot]
    for t in range(num_rows):
        if first[t] >= 0 and status[first[t]] == DROPPED:
            status[first[t]] = RESCUED
    changed, mine = 0, np.zeros(num_experts, dtype=np.int64)  # 1: the row had chosen it; 2: and keeps it
    for t in range(num_rows):
        if not votes[t]:
            continue
        whole, left, lowest, num_live = 0.0, 0.0, num_experts, 0
        for slot in range(t * top_k, (t + 1) * top_k):
            e = own[slot]
            mine[e] = 2 if status[e] == KEPT or e == first[t] else 1
            whole += own_weight[slot]
            if mine[e] == 2:
                left += own_weight[slot]
                num_live += 1
                lowest = min(lowest, e)
        if num_live < top_k:
            moved = False
            growth = (max(whole, 1e-20) / max(left, 1e-20)) ** power
            at = 0  # loaded experts in order: those that the row had not chosen, then those that it had
            for slot in range(t * top_k, (t + 1) * top_k):
                if mine[own[slot]] == 2:
                    new_weight[slot] = own_weight[slot] * growth
                    continue
                while at < 2 * num_experts and not (
                    status[at % num_experts] != DROPPED and mine[at % num_experts] == at // num_experts
                ):
                    at += 1
                new[slot] = at % num_experts if at < 2 * num_experts else lowest
                new_weight[slot] = 0.0
                moved |= new[slot] != own[slot]
                at = min(at + 1, 2 * num_experts)
            changed += moved
        for slot in range(t * top_k, (t + 1) * top_k):
            mine[own[slot]] = 0
    return changed
