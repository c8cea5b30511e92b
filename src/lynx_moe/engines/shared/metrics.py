"""Counting distinct experts per layer, from the ids that the expert kernels get; every engine counts with this.

Shapes: L layers, T rows, K = top_k, E experts. Counts live in tensors on the device of the model and are only added to,
so nothing waits for the device and a CUDA graph can record it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from lynx_moe.kernels import cpu
from lynx_moe.routing import Routing, loaded


class Kind(Enum):
    """A step, by what a policy could do with it."""

    IDLE = "idle"  # dummy and profile runs
    PREFILL = "prefill"  # no decode row
    SINGLE = "single"  # one decode row alone: nothing to share, so only policies that act alone do something
    DECODE = "decode"
    MIXED = "mixed"

    @property
    def acts(self) -> bool:
        return self in (Kind.SINGLE, Kind.DECODE, Kind.MIXED)


KINDS = tuple(kind.value for kind in Kind if kind.acts)
COLUMNS = ("before", "after", "changed_rows", "unchanged_steps")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over the steps of one kind. before / after: distinct experts of all rows by the model's own routing / by the
    final one; under expert parallelism those of this rank. decode_rows: rows that the policy was allowed to remap.
    changed_rows: rows whose experts it changed (in sum over steps). unchanged_steps: steps that kept the model's
    routing (nothing to gain, or the policy's guard)."""

    steps: int = 0
    rows: int = 0
    decode_rows: int = 0
    before: int = 0
    after: int = 0
    changed_rows: int = 0
    unchanged_steps: int = 0

    @property
    def mean_before(self) -> float:
        return self.before / max(self.steps, 1)

    @property
    def mean_after(self) -> float:
        return self.after / max(self.steps, 1)


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """One MoE layer: steps of decode rows only (two or more), steps that mix decode and prefill rows, and steps of one
    decode row in which the policy acts alone."""

    name: str
    decode: Tally
    mixed: Tally
    single: Tally = Tally()

    @property
    def alike(self) -> Tally:
        """Steps of decode rows only: of two or more, and where there was none, of one."""
        return self.decode if self.decode.steps else self.single


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Steps by kind: decode and mixed ones reach the policy, and single ones (one decode row alone) a policy that acts
    alone; prefill ones (no decode row) have nothing to gain and are passed by.
    bypassed_layers: layer -> why it keeps the model's own routing.
    decision_us: mean microseconds of a decision (one layer, one step), counting included; None where the host does not
    wait for it, and where nobody measured it. guard: where the quality guard stands; None: there is none. shadows: what
    shadow steps measured since the start; None: there are none. bound: the prices
    that `max_kl` has come to; None: there is none. pace: the shares of the prices that a latency objective has come to;
    None: there is none. tuned: what acts at which batch size, and in how many steps it did;
    None: `policy` always. disk: which experts were read from it; None: all stay in memory. verified: what became of
    drafts; None: nothing drafts. drafter: the same of the model that drafts, whose steps are its passes; None: none
    does, or it has no MoE layers."""

    policy: str
    steps: dict[str, int]
    layers: tuple[LayerStats, ...]
    bypassed_layers: dict[str, str]
    decision_us: float | None = None
    guard: dict[str, Any] | None = None
    shadows: dict[str, Any] | None = None
    bound: dict[str, Any] | None = None
    pace: dict[str, Any] | None = None
    tuned: dict[str, Any] | None = None
    disk: dict[str, Any] | None = None
    verified: dict[str, Any] | None = None
    drafter: "Stats | None" = None

    @property
    def mean_before(self) -> float:
        """Distinct experts per layer and step of decode rows only (`LayerStats.alike`), by the model's own routing."""
        return sum(layer.alike.mean_before for layer in self.layers) / max(len(self.layers), 1)

    @property
    def mean_after(self) -> float:
        """Distinct experts per layer and step of decode rows only that the expert kernels got."""
        return sum(layer.alike.mean_after for layer in self.layers) / max(len(self.layers), 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers (JSON), the two means included."""
        return {**asdict(self), "mean_before": self.mean_before, "mean_after": self.mean_after}


def layer_stats(
    names: Sequence[str],
    totals: list[list[list[int]]],
    steps: Mapping[str, int],
    row_sums: Mapping[str, Sequence[int]],
) -> tuple[LayerStats, ...]:
    """What `Counters.read` gave, with the steps and the (rows, decode rows) of each kind that all layers share.

    steps: of single ones those in which the policy acted."""

    def tally(layer: int, kind: int, name: str) -> Tally:
        rows, decode_rows = row_sums[name][:2]
        sums = dict(zip(COLUMNS, totals[layer][kind], strict=True))
        return Tally(steps=steps[name], rows=rows, decode_rows=decode_rows, **sums)

    return tuple(
        LayerStats(name=name, **{kind: tally(layer, number, kind) for number, kind in enumerate(KINDS)})
        for layer, name in enumerate(names)
    )


class Counters:
    """The running sums on a device, int64 [L, kinds, columns], and the kind of the current step as a one-hot
    [kinds, 1] beside them: zero for steps that are not counted."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.totals = torch.zeros(num_layers, len(KINDS), len(COLUMNS), dtype=torch.int64, device=device)
        self.kind = torch.zeros(len(KINDS), 1, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Zero, in place: CUDA graphs hold on to these tensors."""
        self.totals.zero_()

    def begin(self, kind: int | None) -> None:
        """The step that comes next is of KINDS[kind]; None: it is not counted."""
        self.kind.zero_()
        if kind is not None:
            self.kind[kind] = 1

    def add(
        self,
        layer: int,
        own: Routing,
        final: Routing,
        num_experts: int,
        valid_T: Tensor | None,
        here_E: Tensor | None = None,
    ) -> None:
        """Counts one layer of the current step; rows of padding are left out, and experts that are not here."""
        if isinstance(final.counts, Tensor) and here_E is None:
            self.totals[layer].addcmul_(self.kind, final.counts)
            return
        both = torch.stack((own.ids.long(), final.ids.long()))
        changed_T = (own.ids != final.ids).any(-1)
        if here_E is not None:
            both = both.where(here_E[both], num_experts)
        if valid_T is not None:
            both = both.where(valid_T[:, None], num_experts)
            changed_T = changed_T & valid_T
        flags = torch.zeros(2, num_experts + 1, dtype=torch.int64, device=both.device)
        loaded = flags.scatter_(1, both.flatten(1), 1)[:, :num_experts].sum(1)
        changed = changed_T.sum().view(1)
        self.totals[layer].addcmul_(self.kind, torch.cat((loaded, changed, changed == 0)))

    def read(self) -> list[list[list[int]]]:
        """The sums as [L][kinds][columns]. Waits for the device."""
        totals: list[list[list[int]]] = self.totals.tolist()
        return totals


class HostCounters(Counters):
    """The same sums in Python's own numbers, for CPUs: what a kernel has counted already is taken over, the rest is
    counted without tensors. Inside a real step a tensor operation costs more than all of this."""

    def __init__(self, num_layers: int) -> None:
        self.sums = [[[0] * len(COLUMNS) for _ in KINDS] for _ in range(num_layers)]
        self.kind_now: int | None = None

    def reset(self) -> None:
        self.__init__(len(self.sums))  # type: ignore[misc]

    def begin(self, kind: int | None) -> None:
        self.kind_now = kind

    def add(
        self,
        layer: int,
        own: Routing,
        final: Routing,
        num_experts: int,
        valid_T: Tensor | None,
        here_E: Tensor | None = None,
    ) -> None:
        if self.kind_now is None:
            return
        if final.counts is None:
            before, after, rows = cpu.count(own.ids, final.ids, valid_T)
        else:
            before, after, rows = (int(number) for number in final.counts[:3])
        if here_E is not None:
            both = [loaded(ids, num_experts, valid_T) & here_E for ids in (own.ids, final.ids)]
            before, after = (int(flags_E.sum()) for flags_E in both)
        sums = self.sums[layer][self.kind_now]
        for column, value in enumerate((before, after, rows, int(rows == 0))):
            sums[column] += value

    def read(self) -> list[list[list[int]]]:
        return self.sums
