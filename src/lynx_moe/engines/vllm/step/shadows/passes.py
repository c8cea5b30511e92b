"""The passes of a shadow step, as the worker sees them: which are due, what decides in them, what came out.

The pass whose tokens and KV stay is the last one, and decides as in any other step. Before it the model runs with every
row exact, and, where somebody asks for that, with another setting (a trial). A pass writes the KV of the step's own
tokens, and the next one writes the same slots again before it reads them.

Data-parallel engines wait for each other in every layer, so all of them make as many passes (`model/together.py`). Who
has less to compare than another one asks for makes the rest exactly, and keeps nothing of them.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.control.sampling import Turns
from lynx_moe.engines.shared.late import Late
from lynx_moe.engines.vllm.step.shadows.gain import Gains
from lynx_moe.engines.vllm.step.shadows.sample import Effect, Sample, Sums, effects
from lynx_moe.policies import Policy

EXACT, ABOVE, STAYS = "exact", "above", "stays"
IDLE = "idle/"  # before the number of a pass that is made for other engines
LAG = 8  # steps that a sample may take from a GPU to the host


@dataclass(frozen=True, eq=False)
class Trial:
    """What decides in a pass that does not stay. price_T: float32, of the step's rows; None: all are exact. by_layer:
    instead of the server's policy; None: that one."""

    price_T: np.ndarray | None = None
    by_layer: list[Policy] | None = None


class Shadows:
    """Of one engine. share: of the steps in which the policy has rows to act on, by counting them, so that all ranks
    and stages choose the same ones."""

    def __init__(self, share: float) -> None:
        self.share, self.step, self.turns = share, 0, Turns()
        self.sums = Sums()
        self.offered: dict[str, Trial] = {}  # what this step has to compare, whether it is a shadow step or not
        self.wish = 0  # passes that it asks for before the one that stays
        self.trials: dict[str, Trial] = {}  # what is made of them; empty: it is no shadow step
        self.at: tuple[Any, ...] | None = None  # begins with the number of who asks: of `Deciding.searches`
        self.batch, self.exact = 0, False  # of this step: `Sample`
        self.indices: Tensor | None = None  # [N], the rows that are sampled from, of this step
        self.received: dict[str, dict[str, Tensor]] = {}  # from the stage before: what each pass goes on from
        self.logits: dict[str, Tensor] = {}  # [N, V], of this step's passes
        self.seconds = 0.0
        self.times: dict[str, float] = {}  # of this step's passes, in seconds
        self.gains = Gains()
        self.travelling: deque[tuple[int, Late, dict[str, Any]]] = deque()

    def begin_step(
        self,
        at: tuple[Any, ...] | None,
        passes: dict[str, Trial],
        *,
        batch: int,
        due: bool | None = None,
        exact: bool = False,
    ) -> None:
        """A step comes. passes: what could be compared in it with the one that stays; at: what its sample is told by
        then. due: who has a share of their own says it. exact: as `Sample` has it."""
        self.trials, self.logits, self.received, self.seconds, self.times = {}, {}, {}, 0.0, {}
        self.batch, self.exact, self.at, self.offered, self.wish = batch, exact, at, passes, 0
        if passes:
            self.step += 1
            asks = self.turns.due(self.share) if due is None else due
            self.wish = len(passes) if asks else 0

    def settle(self, passes: int) -> bool:
        """So many passes are made before the one that stays. Returns whether this engine takes a sample that it has not
        asked for."""
        names = list(self.offered)[:passes]
        self.trials = {name: self.offered[name] for name in names}
        self.trials |= {f"{IDLE}{number}": Trial() for number in range(passes - len(names))}
        return bool(names) and not self.wish

    def compare(self, policy_NV: Tensor, remap_T: Tensor, server_T: Tensor | None, lag: int) -> None:
        """The passes are done; policy_NV: logits of the one that stays."""
        start = time.perf_counter()
        logits, self.logits = self.logits, {}
        assert self.indices is not None
        remap_N = remap_T[self.indices]
        server_N = remap_N if server_T is None else server_T[self.indices]
        truth_NV = logits.get(EXACT, policy_NV)
        parts = [effects(truth_NV, policy_NV, server_N, remap_N & ~server_N)]
        if ABOVE in logits:
            parts.append(effects(truth_NV, logits[ABOVE], server_N))
        late = Late(torch.cat(parts).flatten())
        self.seconds += time.perf_counter() - start
        timed = EXACT in self.times and policy_NV.device.type == "cpu"
        passes = (self.times[EXACT], self.times[STAYS]) if timed else None
        known = {"batch": self.batch, "at": self.at, "seconds": self.seconds, "passes": passes, "exact": self.exact}
        self.travelling.append((self.step + lag, late, known))

    def state(self) -> dict[str, Any]:
        """What was measured so far, in plain numbers."""
        return {**self.sums.told(), "gains": self.gains.state()}

    def told(self) -> list[Sample]:
        """Samples that the host has by now."""
        found = []
        while self.travelling and self.travelling[0][0] <= self.step:
            _, late, known = self.travelling.popleft()
            numbers = late.take()
            server, request, *above = (Effect(*numbers[place : place + 4]) for place in range(0, len(numbers), 4))
            found.append(Sample(server=server, request=request, above=above[0] if above else None, **known))
        return found
