"""What reassignments cost: by phase, rank, layer, expert, and by the router's confidence.

Every function takes the session of one profile and gives lines of its record: a mean KL per token against the exact
model with its 95 % bootstrap over sequences, and how often both rank the same token first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.fidelity.measure import summary
from lynx_moe.lab.profile.measures.denials import DenyExpert, DenyHalf, DenyRank
from lynx_moe.lab.profile.measures.forward import PHASES, effects
from lynx_moe.lab.profile.measures.settings import Settings
from lynx_moe.lab.profile.measures.trace import Trace, trace
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.lab.shared.intervals import weighted_mean
from lynx_moe.policies import Policy, make_policy

Line = dict[str, Any]
NAMES = ("kl", "agree")
FIRST, LAST, HALF = "first rank", "last rank", "random half"
QUARTERS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One model with the batches that it is measured on."""

    settings: Settings
    model: Any
    batches: Sequence[Batch]

    @cached_property
    def trace(self) -> Trace:
        return trace(self.model, self.batches)

    @property
    def experiments(self) -> dict[str, Policy]:
        return {FIRST: DenyRank(rank=0), LAST: DenyRank(rank=self.trace.spec.top_k - 1), HALF: DenyHalf()}

    def run(self, policy: Policy | str, layer: int | None = None) -> Run:
        return apply(self.model, policy, layers=None if layer is None else [layer])

    def costs(self, runs: Sequence[Run], phase: str = "decode") -> list[Line]:
        """A line per run, which looks at each row alone."""
        found = zip(*effects(self.model, self.batches, runs, phase), strict=True)
        return [_slim(summary(self.batches, each, NAMES)) for each in found]


def _slim(line: Line) -> Line:
    return {name: value for name, value in line.items() if name not in ("groups", "agree_by_sequence")}


def phases(session: Session) -> list[Line]:
    """The same reassignments in the decoded tokens, and in the prefix before them."""
    lines: list[Line] = []
    for phase in PHASES:
        found = session.costs([session.run(policy) for policy in session.experiments.values()], phase)
        lines += [{"phase": phase, "denied": name} | one for name, one in zip(session.experiments, found, strict=True)]
    return lines


def ranks(session: Session) -> list[Line]:
    """Every rank denied, and only the first r experts kept (the policy `topk:k=r`), for every r."""
    top_k = session.trace.spec.top_k
    lines: list[Line] = [{"what": "deny", "rank": rank} for rank in range(top_k)]
    lines += [{"what": "keep", "rank": kept} for kept in range(1, top_k)]
    runs = [session.run(DenyRank(rank=rank)) for rank in range(top_k)]
    runs += [session.run(make_policy(f"topk:k={kept}")) for kept in range(1, top_k)]
    return [line | one for line, one in zip(lines, session.costs(runs), strict=True)]


def by_layer(session: Session) -> list[Line]:
    """The random half denied in one layer at a time."""
    layers = session.run("vanilla").layers
    runs = [session.run(DenyHalf(), number) for number in range(len(layers))]
    found = zip(layers, session.costs(runs), strict=True)
    return [{"layer": number, "name": layer.name} | one for number, (layer, one) in enumerate(found)]


def experts(session: Session, layer: int, use: Sequence[float]) -> list[Line]:
    """One expert of one layer denied at a time, those of most `use` first."""
    order = sorted(range(len(use)), key=lambda expert: -use[expert])[: session.settings.num_experts]
    found = session.costs([session.run(DenyExpert(expert=expert), layer) for expert in order])
    lines = [
        {"layer": layer, "expert": expert, "use": use[expert]} | one for expert, one in zip(order, found, strict=True)
    ]
    return [{name: value for name, value in line.items() if not name.endswith("by_sequence")} for line in lines]


def confidence(session: Session) -> list[Line]:
    """Each token's own damage (the cache holds what the exact model wrote), in quarters of tokens by the favourite's
    share of the router's scores."""
    confidence_SB = session.trace.confidence
    edges = torch.cat([each.flatten() for each in confidence_SB]).quantile(torch.linspace(0, 1, QUARTERS + 1))
    lines: list[Line] = []
    names = (FIRST, HALF)
    runs = [session.run(session.experiments[name]) for name in names]
    found = [decode(session.model, batch, runs, "exact") for batch in session.batches]
    for number, name in enumerate(names):
        kl_SB = [effects_of_batch[number].kl.cpu() for effects_of_batch in found]
        for quarter in range(QUARTERS):
            low, high = edges[quarter], edges[quarter + 1] if quarter < QUARTERS - 1 else torch.inf
            inside = [(each >= low) & (each < high) for each in confidence_SB]
            pairs = [pair for kl, chosen in zip(kl_SB, inside, strict=True) for pair in _by_sequence(kl, chosen)]
            if pairs:
                lines.append(
                    {"denied": name, "quarter": quarter, "from": low.item(), "to": edges[quarter + 1].item()}
                    | _mean(pairs)
                )
    return lines


def _by_sequence(kl_SB: torch.Tensor, chosen_SB: torch.Tensor) -> Iterator[tuple[float, int]]:
    """Each sequence's mean over its chosen tokens, and how many there are; sequences without any are left out."""
    for kl_S, chosen_S in zip(kl_SB.T, chosen_SB.T, strict=True):
        if chosen_S.any():
            yield kl_S[chosen_S].mean().item(), int(chosen_S.sum())


def _mean(pairs: Sequence[tuple[float, int]]) -> Line:
    values, counts = zip(*pairs, strict=True)
    mean = sum(value * count for value, count in pairs) / sum(counts)
    return {
        "num_tokens": sum(counts),
        "num_sequences": len(pairs),
        "kl": mean,
        "kl_interval": weighted_mean(values, counts),
    }
