"""Layers of random experts, and expert files of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.engines.disk.making import Making
from lynx_moe.engines.disk.slots import EMPTY, Slots

E, H, INNER, LAYERS = 12, 64, 32, 2
FROM = {"weights": "abc"}
SHAPES = {"up": (2 * INNER, H), "down": (H, INNER)}


def weights(seed: int = 0) -> list[dict[str, Tensor]]:
    """Of each layer: up [E, 2 INNER, H] and down [E, H, INNER], bfloat16."""
    rng = torch.Generator().manual_seed(seed)
    return [
        {name: (torch.randn(E, *shape, generator=rng) / 8).bfloat16() for name, shape in SHAPES.items()}
        for _ in range(LAYERS)
    ]


def there(slots: Slots) -> np.ndarray:
    """bool [E]: which experts a step finds in memory."""
    found: np.ndarray = slots.slot_E != EMPTY
    return found


def packed(parts: dict[str, Tensor]) -> list[Tensor]:
    """As a kernel might have it: every part's rows from the last to the first."""
    return [part.flip(1) for part in parts.values()]


def make(folder: Path, target: Path | None, made_from: dict[str, Any] | None = None) -> Making:
    """A finished file of `weights()`."""
    making = Making(folder)
    for number, layer in enumerate(weights()):
        region = making.add(f"layers.{number}", layer, SHAPES)
        for name, tensor in layer.items():
            region.tensors[name].copy_(tensor)
        region.pack(packed)
    making.finish(target, FROM if made_from is None else made_from)
    return making
