"""The compiled loops behind `cpu.py`; importing this file needs numba. Arrays are numpy's, float32, int64 and bool."""

import numpy as np
from numba import njit


@njit(cache=True)
def voting_rows(logits, valid, remap):  # type: ignore[no-untyped-def]
    """Rows that may be remapped: a NaN anywhere or no finite maximum keeps a row out. Returns them and their maxima."""
    num_rows, num_experts = logits.shape
    voters = np.zeros(num_rows, dtype=np.bool_)
    top = np.zeros(num_rows, dtype=np.float32)
    for t in range(num_rows):
        best, clean = logits[t, 0], True
        for e in range(num_experts):
            value = logits[t, e]
            clean = clean and value == value
            best = max(best, value)
        voters[t] = valid[t] and remap[t] and clean and np.isfinite(best)
        top[t] = best
    return voters, top


@njit(cache=True)
def donated(own_ids, valid, voters, num_experts):  # type: ignore[no-untyped-def]
    """Experts that valid rows load which keep their own routing."""
    free = np.zeros(num_experts, dtype=np.bool_)
    for t in range(len(own_ids)):
        if valid[t] and not voters[t]:
            for k in range(own_ids.shape[1]):
                free[own_ids[t, k]] = True
    return free


@njit(cache=True)
def depth(logits, top, voters, rank):  # type: ignore[no-untyped-def]
    """The voters' median distance from the favourite down to `rank`, between 1e-6 and 1e6."""
    gaps = np.empty(voters.sum(), dtype=np.float32)
    n = 0
    for t in range(len(logits)):
        if voters[t]:
            gaps[n] = top[t] - np.sort(logits[t])[-1 - rank]
            n += 1
    gaps.sort()
    return min(max(gaps[(n - 1) // 2], np.float32(1e-6)), np.float32(1e6))


@njit(cache=True)
def binned_keep(logits, top, voters, free, alpha, beta, max_base, pin_top1, top_k):  # type: ignore[no-untyped-def]
    """The union of the voters' top-k by bin, then popularity, then lowest id; and what is free."""
    num_rows, num_experts = logits.shape
    base = np.float64(min(voters.sum(), max_base))
    power = np.ones(beta + 1, dtype=np.float64)
    for j in range(beta):
        power[j + 1] = power[j] * base
    bins = np.empty((num_rows, num_experts), dtype=np.int64)
    popularity = np.zeros(num_experts, dtype=np.float64)
    for t in range(num_rows):
        if voters[t]:
            for e in range(num_experts):
                scaled = alpha * (logits[t, e] - top[t])
                bins[t, e] = beta if scaled <= -beta else -int(np.ceil(scaled))
                popularity[e] += power[beta - bins[t, e]]
    order = np.argsort(-popularity, kind="mergesort")
    keep = free.copy()
    for t in range(num_rows):
        if voters[t]:
            taken, bin_ = 0, 0
            while taken < top_k:
                for e in order:
                    if bins[t, e] == bin_ and taken < top_k:
                        keep[e] = True
                        taken += 1
                bin_ += 1
            if pin_top1:
                for e in range(num_experts):
                    if logits[t, e] == top[t]:
                        keep[e] = True
                        break
    return keep


@njit(cache=True)
def best_unused(row, keep, used, kept_only):  # type: ignore[no-untyped-def]
    """The largest logit's expert, lowest id first; kept_only: among kept experts above -inf. -1: there is none."""
    best = -1
    for e in range(len(row)):
        if not used[e] and (not kept_only or (keep[e] and row[e] > -np.inf)) and (best < 0 or row[e] > row[best]):
            best = e
    return best


@njit(cache=True)
def reroute(logits, keep, voters, own_ids, own_weights, renormalize, scale):  # type: ignore[no-untyped-def]
    """Each voter's top-k inside `keep`; rows whose own experts all stay, and other rows, are copied."""
    ids, weights = own_ids.copy(), own_weights.copy()
    top_k = own_ids.shape[1]
    for t in range(len(logits)):
        stays = True
        for k in range(top_k):
            stays = stays and keep[own_ids[t, k]]
        if not voters[t] or stays:
            continue
        used = np.zeros(logits.shape[1], dtype=np.bool_)
        mass, total = 0.0, 0.0
        for k in range(top_k):
            best = best_unused(logits[t], keep, used, True)
            if best < 0:
                best = best_unused(logits[t], keep, used, False)
            used[best] = True
            ids[t, k] = best
            mass += own_weights[t, k]
        highest = logits[t, ids[t, 0]]
        for k in range(top_k):
            highest = max(highest, logits[t, ids[t, k]])
        for k in range(top_k):
            total += np.exp(np.float64(logits[t, ids[t, k]] - highest))
        for k in range(top_k):
            share = np.exp(np.float64(logits[t, ids[t, k]] - highest)) / total
            weights[t, k] = share * (scale if renormalize else mass)
    return ids, weights


@njit(cache=True)
def count(own_ids, final_ids, valid, num_experts):  # type: ignore[no-untyped-def]
    """Distinct experts of the valid rows before and after, and how many of the rows changed."""
    before = np.zeros(num_experts, dtype=np.bool_)
    after = np.zeros(num_experts, dtype=np.bool_)
    changed = 0
    for t in range(len(own_ids)):
        if valid[t]:
            differs = False
            for k in range(own_ids.shape[1]):
                before[own_ids[t, k]] = True
                after[final_ids[t, k]] = True
                differs = differs or own_ids[t, k] != final_ids[t, k]
            changed += differs
    return before.sum(), after.sum(), changed


@njit(cache=True)
def fill_padding(ids, weights, valid):  # type: ignore[no-untyped-def]
    """Padding rows repeat the first valid row's ids with weight 0, in place."""
    first = 0
    while first < len(valid) - 1 and not valid[first]:
        first += 1
    first = first if valid[first] else 0
    for t in range(len(valid)):
        if not valid[t]:
            ids[t] = ids[first]
            weights[t] = 0.0


@njit(cache=True)
def affinity_binning(  # type: ignore[no-untyped-def]
    logits, own_ids, own_weights, valid, remap, alpha, beta, rank, max_base, pin_top1, renormalize, scale
):
    """(ids, weights) of one layer and step; alpha below 0 stands for the router's own scale."""
    num_experts, top_k = logits.shape[1], own_ids.shape[1]
    ids, weights = own_ids, own_weights
    voters, top = voting_rows(logits, valid, remap)
    free = donated(own_ids, valid, voters, num_experts)
    num_voters = voters.sum()
    if num_voters > 1 or (num_voters == 1 and free.any()):
        scaled = np.float32(beta) / depth(logits, top, voters, rank) if alpha < 0 else alpha
        keep = binned_keep(logits, top, voters, free, scaled, beta, max_base, pin_top1, top_k)
        ids, weights = reroute(logits, keep, voters, own_ids, own_weights, renormalize, scale)
        before, after, _ = count(own_ids, ids, valid, num_experts)
        if after > before:
            ids, weights = own_ids, own_weights
    ids, weights = ids.copy(), weights.copy()
    fill_padding(ids, weights, valid)
    return ids, weights
