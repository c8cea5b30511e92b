"""A second, independent `lynx`: paper.md's lines written out with Python loops and exact fractions.

The binned quantity is float32 by definition (alpha * d); everything after it is exact here, so a wrong tie, sum or
clamp in the tensor version shows.
"""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Rows, select


def top_k(value: list[float], k: int, among: set[int]) -> list[int]:
    return sorted(among, key=lambda e: (-value[e], e))[:k]


def affinity_binning(
    logits: np.ndarray, k: int, alpha: float, beta: int, valid: list[bool], remap: list[bool], pin: bool
) -> tuple[list[list[int]], list[int]]:
    """The final ids of every row, and which rows were remapped."""
    num_rows, num_experts = logits.shape
    everybody = set(range(num_experts))
    own = [top_k(logits[t].tolist(), k, everybody) for t in range(num_rows)]
    voters = [t for t in range(num_rows) if valid[t] and remap[t]]
    donated = {e for t in range(num_rows) if valid[t] and not remap[t] for e in own[t]}
    if len(voters) < 1 or (len(voters) == 1 and not donated):
        return own, []
    base = Fraction(len(voters))
    q: dict[tuple[int, int], int] = {}
    for t in voters:
        for e in range(num_experts):
            d = np.float32(logits[t, e]) - np.float32(logits[t].max())
            scaled = np.float32(alpha) * np.float32(d)
            q[t, e] = -beta if scaled <= -beta else math.ceil(scaled)
    h = {te: base**bin_ for te, bin_ in q.items()}
    total = {e: sum(h[t, e] for t in voters) for e in range(num_experts)}
    keep = set(donated)
    for t in voters:
        m = [q[t, e] + (total[e] - h[t, e]) / base for e in range(num_experts)]
        keep |= set(top_k(m, k, everybody))
        if pin:
            keep.add(own[t][0])
    final = [top_k(logits[t].tolist(), k, keep) if t in voters else own[t] for t in range(num_rows)]
    rows = [t for t in range(num_rows) if valid[t]]
    if len({e for t in rows for e in final[t]}) > len({e for t in rows for e in own[t]}):
        return own, []
    return final, voters


def softmax_over_keep(logits: np.ndarray, ids: list[int], own: list[int], renormalize: bool) -> np.ndarray:
    exp = np.exp(logits.astype(np.float64) - logits.max())
    weights = exp[ids] / exp[ids].sum()
    return weights if renormalize else weights * exp[own].sum() / exp.sum()


@pytest.mark.parametrize("block", range(10))
def test_equals_the_transcription_on_ten_thousand_cases(block: int) -> None:
    draw = random.Random(block)
    rng = np.random.default_rng(block)
    changed = 0
    for _ in range(1000):
        num_rows, num_experts = draw.randint(1, 9), draw.randint(2, 14)
        k = draw.randint(1, max(1, num_experts // 2))
        logits = rng.normal(size=(num_rows, num_experts)).astype(np.float32) * draw.choice([0.3, 1, 3])
        if draw.random() < 0.5:
            logits = np.round(logits * 4) / 4  # ties, and values on the borders of bins
        alpha, beta, pin = draw.choice([0.5, 0.7, 1.0, 1.125, 2.0, 3.0]), draw.randint(0, 4), draw.random() < 0.3
        valid = [draw.random() < 0.9 for _ in range(num_rows)]
        remap = [draw.random() < 0.8 for _ in range(num_rows)]
        expected, voters = affinity_binning(logits, k, alpha, beta, valid, remap, pin)
        policy = make_policy(f"lynx:alpha={alpha},beta={beta},pin_top1={str(pin).lower()}")
        spec = RouterSpec(num_experts=num_experts, top_k=k, renormalize=draw.random() < 0.5)
        tensor = torch.from_numpy(logits)
        own = select(tensor, spec)
        routing = policy.route(tensor, spec, Rows(valid=torch.tensor(valid), remap=torch.tensor(remap)))
        for t in range(num_rows):
            if not valid[t]:
                continue
            assert routing.ids[t].tolist() == expected[t]
            if t in voters and expected[t] != own.ids[t].tolist():
                changed += 1
                want = softmax_over_keep(logits[t], expected[t], own.ids[t].tolist(), spec.renormalize)
                np.testing.assert_allclose(routing.weights[t].numpy(), want, rtol=1e-5, atol=1e-7)
    assert changed > 300  # the cases do exercise the rule
