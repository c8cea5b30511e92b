"""What a policy does to the next-token distributions that an answer is made of: the shadow steps of a block, by row."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

from torch import Tensor

from lynx_moe.control.loss import compare
from lynx_moe.engines.vllm.step.shadows.passes import EXACT
from lynx_moe.engines.vllm.step.shadows.sample import Effect
from lynx_moe.lab.shared.intervals import weighted_mean


class Row(NamedTuple):
    """A row that might be remapped: its request, its place in the draft (0: before all of it), what changed."""

    request: str
    depth: int
    kl: float
    agree: float


class Harm:
    """A block in which the shadow steps of a plan are compared once more, row by row. names: the requests of a step, in
    the order of its rows."""

    def __init__(self, plan: Any, names: Callable[[], Sequence[str]]) -> None:
        self.plan, self.names = plan, names
        self.rows: list[Row] = []  # of the step under way
        self.effects: list[Effect] = []

    def __enter__(self) -> Self:
        if self.plan.shadows is not None:
            self.plan.shadows.compare = self._compare  # on the object itself, before the class's
        return self

    def __exit__(self, *_: object) -> None:
        if self.plan.shadows is not None:
            del self.plan.shadows.compare

    def _compare(self, policy_NV: Tensor, remap_T: Tensor, *more: Any) -> None:
        shadows, rows = self.plan.shadows, self.plan.rows
        if EXACT in shadows.logits:
            truth, policy = (each.float().log_softmax(-1) for each in (shadows.logits[EXACT], policy_NV))
            kl, agree, _, _ = compare(truth, policy, policy.argmax(-1))
            names = list(self.names())
            for place, row in enumerate(shadows.indices.tolist()):
                if remap_T[row]:  # places are known where a draft may be remapped; else all of these rows decode
                    request, depth = (rows.request[row], rows.depth[row]) if rows.drafted else (0, 0)
                    self.rows.append(
                        Row(names[int(request)], int(depth), kl[place].clamp(min=0).item(), agree[place].item())
                    )
        type(shadows).compare(shadows, policy_NV, remap_T, *more)

    def committed(self, accepted: Callable[[str], int]) -> None:
        """The engine's step is over. accepted: of a request that has verified a draft in it, the tokens. What the model
        would say after a token that was rejected is in no answer, and is left out."""
        deep = {row.request for row in self.rows if row.depth}
        kept = [row for row in self.rows if row.request not in deep or row.depth <= accepted(row.request)]
        if kept:
            self.effects.append(Effect(len(kept), sum(row.kl for row in kept), sum(row.agree for row in kept)))
        self.rows = []


def line(effects: Sequence[Effect]) -> dict[str, Any]:
    """Rows that were compared, in how many steps; the mean KL(exact || policy) of a row in nats and the share of rows
    that rank the same token first, with 95 % intervals over steps; None where no row could be remapped."""
    rows = [one.rows for one in effects]
    found: dict[str, Any] = {"steps": len(effects), "rows": int(sum(rows))}
    for name in ("kl", "agree"):
        means = [getattr(one, name) / one.rows for one in effects]
        found[name] = sum(getattr(one, name) for one in effects) / sum(rows) if rows else None
        found[f"{name}_interval"] = weighted_mean(means, rows) if len(rows) > 1 else None
    return found
