"""The published rules once more, one row and one expert at a time, in plain Python: no tensor code, no clever order.

A float is rounded to float32 (`f32`) where the definition says that float32 is compared; all else is exact or float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from cases import Case

from lynx_moe.routing import Routing

EMPTY = -1  # a slot left over


def f32(value: float) -> float:
    return float(np.float32(value))


def score(scoring: str, logits: list[float]) -> list[float]:
    if scoring == "softmax":
        exp = [math.exp(x - max(logits)) for x in logits]
        return [f32(x / math.fsum(exp)) for x in exp]
    if scoring == "sigmoid":
        return [f32(1 / (1 + math.exp(-x)) if x > -700 else 0.0) for x in logits]
    return [f32(math.sqrt(x if x > 40 else math.log1p(math.exp(x)))) for x in logits]


@dataclass
class Row:
    """A voter: its scores p, what the model ranks by, which experts its groups allow, its own slots."""

    p: list[float]
    logits: list[float]
    choice: list[float]
    allowed: list[int]
    own: list[int]
    weights: list[float]

    def order(self, experts: Any) -> list[int]:
        return sorted(experts, key=lambda e: (-self.choice[e], e))

    @property
    def ranking(self) -> list[int]:
        return self.order(self.allowed)


class Batch:
    """A step taken apart. `free` are the experts that rows which keep their routing load."""

    def __init__(self, case: Case, own: Routing) -> None:
        self.spec, self.case, self.own = case.spec, case, own
        self.bias = [0.0] * case.spec.num_experts if case.spec.bias is None else case.spec.bias.tolist()
        voters = [t for t, votes in enumerate(case.voters.tolist()) if votes]
        self.rows = {t: self.row(case.logits[t].float().tolist(), own.ids[t].tolist(), own.weights[t]) for t in voters}
        silent = [t for t, valid in enumerate(case.valid.tolist()) if valid and t not in voters]
        self.free = {e for t in silent for e in own.ids[t].tolist()}
        cost = [1.0] if case.rows.load_cost_E is None else case.rows.load_cost_E.tolist()
        self.held = {e for e, load in enumerate(cost) if load < 1}  # in memory

    def row(self, logits: list[float], own: list[int], weights: Any) -> Row:
        p = score(self.spec.scoring, logits)
        choice = logits if self.spec.bias is None else [f32(a + f32(b)) for a, b in zip(p, self.bias, strict=True)]
        return Row(p, logits, choice, self.groups(choice), own, weights.double().tolist())

    def groups(self, choice: list[float]) -> list[int]:
        if self.spec.groups is None:
            return list(range(len(choice)))
        n_group, topk_group = self.spec.groups
        size = len(choice) // n_group

        def value(group: int) -> float:
            best = sorted(choice[group * size : (group + 1) * size], reverse=True)
            return best[0] if self.spec.bias is None else f32(best[0] + best[1])

        chosen = sorted(range(n_group), key=lambda g: (-value(g), g))[:topk_group]
        return [e for e in range(len(choice)) if e // size in chosen]

    def reroute(self, row: Row, keep: set[int]) -> list[int]:
        order = row.ranking
        kept = [e for e in order if e in keep and row.choice[e] > -math.inf]
        return (kept + [e for e in order if e not in kept])[: self.spec.top_k]

    def weigh(self, row: Row, experts: list[int], norm: str, form: str) -> list[float]:
        """The weights of a changed row's different experts."""
        if norm == "own=1":  # the row's own weights, which hold the factors below
            weight = dict(zip(row.own, row.weights, strict=True))
            whole, left = (max(math.fsum(weight[e] for e in some), 1e-20) for some in (row.own, experts))
            return [weight[e] * whole / left for e in experts]
        factors = [1.0] * self.spec.num_experts if self.spec.expert_scale is None else self.spec.expert_scale.tolist()
        shares = self.shares(row, experts, norm, form)
        return [share * factors[e] for share, e in zip(shares, experts, strict=True)]

    def shares(self, row: Row, experts: list[int], norm: str, form: str) -> list[float]:
        spec = self.spec
        total = spec.scale if spec.renormalize else math.fsum(row.weights)
        if norm == "model" and not spec.renormalize and (spec.scoring != "softmax" or form == "drop"):
            return [row.p[e] * spec.scale for e in experts]
        if norm == "model" and spec.scoring == "softmax":  # from the logits: the scores may have vanished
            top = max(row.logits[e] for e in experts)
            exp = [math.exp(row.logits[e] - top) if top > -math.inf else 0.0 for e in experts]
            return [x / max(math.fsum(exp), 1.0) * total for x in exp]
        wide = row.ranking[: int(norm.removeprefix("k2="))] if norm.startswith("k2=") else row.own
        mass = max(math.fsum(row.p[e] for e in (experts if norm == "model" else wide)), 1e-20)
        return [row.p[e] / mass * total for e in experts]


def rerouting(
    batch: Batch, keep: set[int] | dict[int, set[int]], norm: str
) -> dict[int, tuple[list[int], list[float]]]:
    """New ids and weights of every voter whose experts do not all stay; keep: for all voters, or for those named."""
    changed = {}
    for t, row in batch.rows.items():
        if isinstance(keep, dict) and t not in keep:
            continue
        stay = (keep[t] if isinstance(keep, dict) else keep) | batch.free
        ids = batch.reroute(row, stay)
        if set(ids) != set(row.own) and not set(row.own) <= stay:
            changed[t] = ids, batch.weigh(row, ids, norm, "reroute")
    return changed


def dropping(batch: Batch, live: Callable[[Row, int], bool], norm: str) -> dict[int, tuple[list[int], list[float]]]:
    """live(row, rank): whether the row's expert of that rank stays."""
    changed = {}
    for t, row in batch.rows.items():
        order = row.order(row.own)
        stay = [e for rank, e in enumerate(order) if live(row, rank)]
        if len(stay) < len(row.own):
            weights = dict(zip(stay, batch.weigh(row, stay, norm, "drop"), strict=True))
            changed[t] = [e if e in stay else EMPTY for e in row.own], [weights.get(e, 0.0) for e in row.own]
    return changed


def merging(
    batch: Batch, target: Callable[[Row, int], int], norm: str, scale: list[list[float]] | None = None
) -> dict[int, tuple[list[int], list[float]]]:
    """target(row, expert): where a choice goes."""
    changed = {}
    for t, row in batch.rows.items():
        ids = [target(row, e) for e in row.own]
        if ids == row.own:
            continue
        different = list(dict.fromkeys(ids))
        if norm in ("own", "fold"):
            sums = dict.fromkeys(different, 0.0)
            for e, v, weight in zip(row.own, ids, row.weights, strict=True):
                sums[v] += weight * (scale[e][v] if norm == "fold" and scale and v != e else 1.0)
        else:
            sums = dict(zip(different, batch.weigh(row, different, norm, "merge"), strict=True))
        holders = [v if v not in ids[:slot] else EMPTY for slot, v in enumerate(ids)]
        changed[t] = holders, [sums.pop(v, 0.0) for v in holders]  # the first slot that names an expert takes it all
    return changed


def fill(ids: list[list[int]], own: list[list[int]], valid: list[bool]) -> list[list[int]]:
    """Slots left over hold what the valid rows load."""
    loaded = sorted({e for row, ok in zip(ids, valid, strict=True) if ok for e in row} - {EMPTY})
    filled = []
    for row, chosen in zip(ids, own, strict=True):
        spare = sorted((e for e in loaded if e not in row), key=lambda e: (e in chosen, e))
        lowest = min(e for e in row if e != EMPTY)
        filled.append([e if e != EMPTY else spare.pop(0) if spare else lowest for e in row])
    return filled


def drop_on_miss(batch: Batch, mass: float, min_k: int) -> Callable[[Row], set[int]]:
    """What a row does without: its lightest experts that are not in memory, of equal ones the first of its slots."""

    def gone(row: Row) -> set[int]:
        if min(row.weights) > 0.5 * max(row.weights):
            return set()
        whole, lost, left = max(math.fsum(row.weights), 1e-20), 0.0, len(row.own)
        found: set[int] = set()
        for weight, e in sorted(zip(row.weights, row.own, strict=True), key=lambda pair: pair[0]):
            if e in batch.held:
                continue
            lost, left = lost + weight, left - 1
            if lost / whole > mass + 1e-9 or left < min_k:
                break
            found.add(e)
        return found

    return gone


def cache_prior(batch: Batch, row: Row, weight: float, top_j: int) -> list[int]:
    """The row's first experts when those in memory are given a part of the mean span of scores."""
    spans = [max(other.choice) - min(other.choice) for other in batch.rows.values()]
    spans = [span for span in spans if math.isfinite(span)]
    more = f32(f32(weight) * f32(math.fsum(spans) / max(len(spans), 1)))
    moved = [f32(s + more) if e in batch.held else s for e, s in enumerate(row.choice)]
    first = row.ranking[:top_j]
    rest = sorted((e for e in row.allowed if e not in first), key=lambda e: (-moved[e], e))
    return [*sorted(first, key=lambda e: (-moved[e], e)), *rest][: batch.spec.top_k]


def union(batch: Batch, num: int) -> set[int]:
    return {e for row in batch.rows.values() for e in row.ranking[:num]}


def largest(value: list[float], num: int, first: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
    return set(sorted(range(len(value)), key=lambda e: (e not in first, -f32(value[e]), e))[:num])


def spread(batch: Batch, keep: set[int], pinned: set[int], ranks: list[set[int]]) -> set[int]:
    """The kept set over ranks; ranks[e]: where an expert lives, with its copies."""
    always = pinned | batch.free
    keep = keep | always
    candidates = keep | {e for row in batch.rows.values() for e in row.own}
    wish = [math.fsum(row.p[e] for row in batch.rows.values() if e in row.allowed) for e in range(len(ranks))]

    def order(e: int) -> tuple[bool, bool, float, int]:
        return e not in always, e not in keep, -f32(wish[e]), e

    homes = [sorted((e for e in candidates if rank in ranks[e]), key=order) for rank in set().union(*ranks)]

    def below(height: int) -> set[int]:
        return {e for e in candidates if all(e not in home[height:] for home in homes)}

    height = max(len(always & set(home)) for home in homes)
    while len(below(height)) < len(keep):
        height += 1
    return below(height)


def xshare(batch: Batch, budget: int, k0: int) -> set[int]:
    share = [
        math.fsum(row.p[e] for row in batch.rows.values() if e in row.allowed) for e in range(batch.spec.num_experts)
    ]
    pinned = union(batch, k0)
    return pinned | largest(share, budget, pinned)


def alloc(batch: Batch, k: float, k_base: int) -> dict[int, set[int]]:
    """id(row) -> the experts that it keeps."""
    kept = {id(row): set(row.order(row.own)[:k_base]) for row in batch.rows.values()}
    rest = sorted((-row.p[e], e) for row in batch.rows.values() for e in row.own if e not in kept[id(row)])
    spare = math.floor(k * len(batch.rows)) - k_base * len(batch.rows)
    if spare > 0:
        last = rest[:spare][-1]  # rows that want the same expert by the same score get it together
        for row in batch.rows.values():
            kept[id(row)] |= {e for e in row.own if (-row.p[e], e) <= last}
    return kept


def drafts(batch: Batch) -> list[list[int]]:
    """The voters of each request that verifies a draft, by their numbers."""
    if batch.case.rows.request is None:
        return []
    requests: dict[int, list[int]] = {}
    for t in batch.rows:
        requests.setdefault(int(batch.case.rows.request[t]), []).append(t)
    return [rows for rows in requests.values() if len(rows) > 1]


def moe_spec(batch: Batch, budget: int) -> dict[int, set[int]]:
    keep = {}
    for draft in drafts(batch):
        rows = [batch.rows[t] for t in draft]
        s = [math.fsum(row.p[e] for row in rows if e in row.allowed) for e in range(batch.spec.num_experts)]
        keep |= dict.fromkeys(draft, largest(s, budget))
    return keep


def acceptmoe(batch: Batch) -> dict[int, set[int]]:
    keep, depth, chance = {}, batch.case.rows.depth, batch.case.rows.chance
    for draft in drafts(batch):
        at = {t: int(depth[t]) for t in draft}
        nodes = {d: sum(other == d for other in at.values()) for d in at.values()}
        a = {t: math.sqrt(float(chance[t]) / nodes[at[t]]) for t in draft}
        u = [
            math.fsum(a[t] * batch.rows[t].p[e] for t in draft if e in batch.rows[t].own)
            for e in range(batch.spec.num_experts)
        ]
        anchors = {e for t in draft if at[t] == 0 for e in batch.rows[t].own}
        others = [e for e, value in enumerate(u) if e not in anchors and value > 0]
        whole = math.fsum(u[e] for e in others)
        entropy = -math.fsum(u[e] / whole * math.log(u[e] / whole) for e in others)
        number = math.ceil(f32(math.exp(entropy)))
        best = sorted(others, key=lambda e: (-f32(u[e]), e))[:number]
        keep |= dict.fromkeys(draft, anchors | set(best))
    return keep


def sere(batch: Batch, num_primary: int, rho: float, similarity: list[list[float]]) -> Callable[[Row, int], int]:
    primary = union(batch, num_primary) | batch.free

    def target(row: Row, e: int) -> int:
        usable = sorted(primary & set(row.allowed))
        if e in primary or not usable:
            return e
        best = max(usable, key=lambda v: (similarity[e][v], -v))
        return best if similarity[e][best] >= rho else e

    return target


def exfold(batch: Batch, num_keep: int, norms: list[float], loss: list[list[float]]) -> Callable[[Row, int], int]:
    adds = [
        math.fsum(row.weights[row.own.index(e)] for row in batch.rows.values() if e in row.own) * norms[e]
        for e in range(batch.spec.num_experts)
    ]
    pool = largest(adds, num_keep) | batch.free

    def target(row: Row, e: int) -> int:
        usable = sorted(pool & set(row.allowed))
        return e if e in pool or not usable else min(usable, key=lambda v: (loss[e][v], v))

    return target
