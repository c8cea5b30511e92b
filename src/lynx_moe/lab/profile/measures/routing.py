"""Expert use over the data set and inside batches, and distinct experts by batch size; from a trace.

The spread of a set of tokens is the root mean square, over layers and experts, of an expert's share of these tokens
less the even share K/E. Tokens that drew their K experts uniformly would have sqrt(p (1 - p) / tokens), p = K/E.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.lab.profile.measures.trace import Trace, used
from lynx_moe.lab.shared.intervals import weighted_mean

DRAWS = 300
RESAMPLES = 500
Line = dict[str, Any]


def routing(found: Trace, seed: int) -> Line:
    """Shares, spreads with 95 % intervals, distinct experts by batch size, and those of a batch's first r ranks."""
    num_experts, top_k = found.spec.num_experts, found.spec.top_k
    even, batch_size = top_k / num_experts, len(found.ids[0])
    per_sequence = torch.cat([used(ids, num_experts).sum(1) for ids in found.ids])  # [N, L, E]
    tokens_N = torch.tensor([ids.shape[1] for ids in found.ids for _ in ids], dtype=torch.float32)
    use_LE = per_sequence.sum(0) / tokens_N.sum()
    steps_SLE = torch.cat([used(ids, num_experts).mean(0) for ids in found.ids])
    variance_S = ((steps_SLE - even) ** 2).mean((1, 2))
    inside = weighted_mean(variance_S.tolist(), [1.0] * len(variance_S))
    return {
        "num_layers": len(use_LE),
        "num_experts": num_experts,
        "top_k": top_k,
        "num_sequences": len(tokens_N),
        "num_tokens": int(tokens_N.sum()),
        "num_steps": len(steps_SLE),
        "use": use_LE.tolist(),
        "even": even,
        "over_data": ((use_LE - even) ** 2).mean().sqrt().item(),
        "over_data_interval": _over_sequences(per_sequence, tokens_N, even, seed),
        "inside": variance_S.mean().sqrt().item(),
        "inside_interval": [edge**0.5 for edge in inside],
        "inside_uniform": (even * (1 - even) / batch_size) ** 0.5,
        "over_data_uniform": (even * (1 - even) / tokens_N.sum().item()) ** 0.5,
        "sorted_over_data": _sorted(use_LE),
        "sorted_inside": _sorted(steps_SLE),
        "sorted_uniform": _sorted(_uniform(batch_size, num_experts, top_k, seed)),
        "loads_by_rank": [_loads(found, kept) for kept in range(1, top_k + 1)],
        "distinct": [_distinct(found, size, seed) for size in _sizes(len(tokens_N))],
    }


def _sorted(share: Tensor) -> list[float]:
    """Shares from the most to the least used expert, the mean over all that stands before the last dimension."""
    return share.sort(-1, descending=True).values.flatten(0, -2).mean(0).tolist()


def _uniform(batch_size: int, num_experts: int, top_k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(DRAWS, batch_size, num_experts, generator=generator).topk(top_k, -1).indices
    return used(drawn, num_experts).mean(1)


def _over_sequences(per_sequence: Tensor, tokens_N: Tensor, even: float, seed: int) -> list[float]:
    """95 % bootstrap over sequences of the spread over the data set."""
    rng = np.random.default_rng(seed)
    times_RN = rng.multinomial(len(tokens_N), [1 / len(tokens_N)] * len(tokens_N), RESAMPLES).astype(np.float32)
    share_RX = times_RN @ per_sequence.flatten(1).numpy() / (times_RN @ tokens_N.numpy())[:, None]
    spread_R = ((share_RX - even) ** 2).mean(-1) ** 0.5
    return [float(edge) for edge in np.percentile(spread_R, (2.5, 97.5))]


def _loads(found: Trace, kept: int) -> float:
    """Distinct experts per layer and step, if every row used its first `kept` only."""
    counts = [used(ids[..., :kept], found.spec.num_experts).amax(0).sum(-1).flatten() for ids in found.ids]
    return torch.cat(counts).mean().item()


def _sizes(num_sequences: int) -> list[int]:
    return [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size <= num_sequences]


def _distinct(found: Trace, size: int, seed: int) -> Line:
    """Batches of one token from each of `size` sequences, drawn anew DRAWS times; the mean over layers of each."""
    rng = np.random.default_rng([seed, size])
    sequences = [ids_SLK for ids in found.ids for ids_SLK in ids]
    counts = []
    for _ in range(DRAWS):
        chosen = [sequences[number] for number in rng.permutation(len(sequences))[:size]]
        tokens = torch.stack([ids_SLK[rng.integers(len(ids_SLK))] for ids_SLK in chosen])
        counts.append(used(tokens, found.spec.num_experts).amax(0).sum(-1).mean().item())
    low, high = np.percentile(counts, (2.5, 97.5))
    share = found.spec.top_k / found.spec.num_experts
    uniform = found.spec.num_experts * (1 - (1 - share) ** size)
    return {"batch_size": size, "mean": float(np.mean(counts)), "range": [float(low), float(high)], "uniform": uniform}
