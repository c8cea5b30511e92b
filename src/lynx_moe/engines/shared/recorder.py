"""Router logits of whole steps, kept on the host while an engine runs; the lab writes them to a file."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.routing import Routing, Rows


class Recorder:
    """Collects steps until they would pass `max_bytes`; later ones are counted in `dropped` and left out.

    layers: the remapped layers by the engine's numbers; a step is whole when all of them were added. Of layer i,
    `parts[i]` holds per step: logits [T, E] as the router gave them, ids [T, K] (int16) and weights [T, K] (float32) of
    the model's own routing, T being the step's valid rows; `remap` holds bool [T] per step.
    """

    def __init__(self, layers: Mapping[int, Layer], max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes={max_bytes} must be positive")
        self.layers, self.max_bytes = dict(layers), max_bytes
        self.parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {number: [] for number in layers}
        self.remap: list[Tensor] = []
        self.num_bytes = self.dropped = 0
        self._step: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, layer: int, logits_TE: Tensor, own: Routing, rows: Rows | None) -> None:
        """One layer of the current step; the layers of a step may come in any order."""
        valid_T = torch.ones(len(logits_TE), dtype=torch.bool)
        valid_T = valid_T if rows is None or rows.valid is None else rows.valid.cpu()
        remap_T = valid_T if rows is None or rows.remap is None else rows.remap.cpu()
        logits, ids, weights = logits_TE.detach(), own.ids.to(torch.int16), own.weights.float()
        self._step[layer] = (logits.cpu()[valid_T], ids.cpu()[valid_T], weights.cpu()[valid_T])
        if len(self._step) < len(self.layers):
            return
        step, self._step = self._step, {}
        size = sum(part.numel() * part.element_size() for parts in step.values() for part in parts)
        if self.dropped or self.num_bytes + size > self.max_bytes:
            self.dropped += 1
            return
        self.num_bytes += size
        self.remap.append(remap_T[valid_T])
        for number, parts in step.items():
            self.parts[number].append(parts)
