"""`lynx-moe fidelity --ranks N`: the same measurement with the experts on N ranks, and what the fullest rank loads.

Experts live on them one after another. Nothing is sent: a policy with per_rank=true decides as it would there, and what
each rank loads is counted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.measure import FULLEST, Line, Local, Settings
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.routing import Routing, loaded


def measure(
    settings: Settings,
    policies: Sequence[str],
    ranks: int,
    path: Path,
    advance: Callable[[str], None],
    max_gib: float | None = None,
) -> Line:
    """As `fidelity.measure`; lines have `fullest_before` and `fullest_after` too. Raises ValueError also for ranks that
    have no expert."""
    if ranks < 2:
        raise ValueError(f"--ranks {ranks}: one rank has all experts, and is measured without it; use 2 or more")
    return fidelity.measure(settings, policies, path, advance, max_gib, partial(OnRanks, ranks=ranks), {"ranks": ranks})


class OnRanks(Local):
    """A `fidelity.Decoder` on transformers that counts what the fullest rank loads."""

    def __init__(self, settings: Settings, specs: Sequence[str], ranks: int) -> None:
        super().__init__(settings, specs, ranks)
        self.counts = [Fullest() for _ in self.runs]
        for run, count in zip(self.runs, self.counts, strict=True):
            run.watch = count.add

    def decode(self, batch: Batch, cache: str, tick: Callable[[], None]) -> list[Line]:
        for count in self.counts:
            count.sums.zero_()
        found = super().decode(batch, cache, tick)
        return [
            piece | dict(zip(FULLEST, count.means(), strict=True))
            for piece, count in zip(found, self.counts, strict=True)
        ]


class Fullest:
    """Sums over layers and steps of the experts that the fullest rank loads, by the model's own routing and by the
    policy's, and their number."""

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.int64)

    def add(self, layer: Layer, own: Routing, final: Routing) -> None:
        assert layer.placement is not None
        flags = (loaded(routing.ids, layer.spec.num_experts) for routing in (own, final))
        self.sums += torch.tensor([*(int(layer.placement.count(each).amax()) for each in flags), 1])

    def means(self) -> list[float]:
        """Of a layer and step; 0 where the policy had nothing to act on, as all ranks' loads together are then."""
        before, after, times = self.sums.tolist()
        return [before / max(times, 1), after / max(times, 1)]
