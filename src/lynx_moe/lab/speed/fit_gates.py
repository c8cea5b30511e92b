"""`python -m lynx_moe.lab.speed.fit_gates`: the gates of every shape fitted anew, beside those in the table.

By drawing rows as `gates.py` says; the draw has a fixed seed, so the fit is deterministic. E experts, K = top_k.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from lynx_moe.lab.shared import tables
from lynx_moe.lab.speed.gates import SHARES, Gates
from lynx_moe.lab.speed.shapes import SHAPES, num_experts

LAYERS, TOKENS = 48, 256  # of a draw
BATCHES = (4, 16, 64)


def logits(gates: Gates, experts: int) -> Tensor:
    """float32 [LAYERS, TOKENS, E] as such gates give them."""
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(LAYERS, TOKENS, experts, generator=generator)
    shared = torch.randn(LAYERS, 1, experts, generator=generator)
    found: Tensor = gates.std * (own + gates.common * shared) / (1 + gates.common**2) ** 0.5
    return found


def shares(gates: Gates, experts: int, top_k: int) -> list[float]:
    """Mean shares of a row's first min(6, K) experts in what these weigh together."""
    weights = logits(gates, experts).topk(min(len(SHARES), top_k), -1).values.softmax(-1)
    return [float(share) for share in weights.mean((0, 1))]


def distinct(gates: Gates, experts: int, top_k: int, batch: int) -> float:
    """Mean distinct experts of a layer and a batch."""
    ids = logits(gates, experts).topk(top_k, -1).indices.view(LAYERS, TOKENS // batch, batch * top_k)
    return float(torch.zeros(*ids.shape[:2], experts).scatter(-1, ids, 1.0).sum(-1).mean())


def aims(top_k: int) -> list[float]:
    """The published shares of so many first ranks, in what these weigh together."""
    ranks = SHARES[:top_k]
    return [share / sum(ranks) for share in ranks]


def fit_std(experts: int, top_k: int) -> float:
    """The std by which the shares by rank are nearest to the published ones, in least squares."""

    def error(std: float) -> float:
        found = shares(Gates(std=std, common=0.0, source=""), experts, top_k)
        return sum((a - b) ** 2 for a, b in zip(found, aims(top_k), strict=True))

    return float(minimize_scalar(error, bounds=(0.3, 4.0), method="bounded").x)


def fit_common(experts: int, top_k: int, wanted: Mapping[int, float]) -> float:
    """The length of the common part by which batches load as many distinct experts as is published, in relative least
    squares."""

    def error(common: float) -> float:
        gates = Gates(std=1.0, common=common, source="")
        return sum((distinct(gates, experts, top_k, batch) / aim - 1) ** 2 for batch, aim in wanted.items())

    return float(minimize_scalar(error, bounds=(0.0, 3.0), method="bounded").x)


def fitted(gates: Gates, experts: int, top_k: int) -> Gates:
    """The same gates with std, and common where there is something to fit it to, as they come out now."""
    common = fit_common(experts, top_k, gates.distinct) if gates.distinct else gates.common
    return replace(gates, std=fit_std(experts, top_k), common=common)


def main() -> None:
    at = [f"at {batch}" for batch in BATCHES]
    head = ("shape", "std", "fitted", "common", "fitted", "shares by rank", *at, "aim")
    rows = []
    for name, shape in SHAPES.items():
        size, old = (num_experts(shape), shape.config["num_experts_per_tok"]), shape.gates
        new = fitted(old, *size)
        numbers = [f"{value:.2f}" for value in (old.std, new.std, old.common, new.common)]
        loads = [f"{distinct(old, *size, batch):.1f}" for batch in BATCHES]
        by_rank = " ".join(f"{share:.3f}" for share in shares(old, *size))
        aim = ", ".join(f"{wanted} at {batch}" for batch, wanted in old.distinct.items())
        rows.append((name, *numbers, by_rank, *loads, aim or "-"))
    print("Distinct experts at a batch size. Shares by rank aim at", *SHARES)
    print(tables.markdown(head, rows))


if __name__ == "__main__":
    main()
