"""A small trace of routes, and the logits that it comes from."""

from pathlib import Path

import numpy as np
import torch

from lynx_moe.routing import RouterSpec, select

LAYERS, TOKENS, EXPERTS, TOP_K = 2, 300, 12, 3
SPEC = RouterSpec(num_experts=EXPERTS, top_k=TOP_K, renormalize=False)


def made_logits() -> torch.Tensor:
    """[L, N, E], some experts more popular than others."""
    generator = torch.Generator().manual_seed(4)
    shape = (LAYERS, TOKENS, EXPERTS)
    return torch.randn(shape, generator=generator) + torch.randn(LAYERS, 1, EXPERTS, generator=generator)


def parts() -> dict[str, np.ndarray]:
    """A trace of 15 sequences of 20 tokens, two tasks in turn."""
    own = [select(logits, SPEC) for logits in made_logits()]
    sequence = np.arange(TOKENS) // 20
    return {
        "ids": np.stack([routing.ids.numpy().astype(np.uint8) for routing in own]),
        "weights": np.stack([routing.weights.numpy() for routing in own]),
        "sequence": sequence,
        "num_experts": np.array(EXPERTS),
        "task": sequence % 2,
        "tasks": np.array(["code", "prose"]),
    }


def written(folder: Path, **changed: object) -> Path:
    """The trace as a file; a part that is changed to None is left out."""
    path = folder / "routes.npz"
    np.savez(path, **{name: part for name, part in (parts() | changed).items() if part is not None})
    return path
