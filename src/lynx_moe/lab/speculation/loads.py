"""Distinct experts of an engine's steps, exact verification included, which the plan itself passes by uncounted."""

from typing import Any, NamedTuple, Self

from torch import Tensor

from lynx_moe.routing import Routing


class Step(NamedTuple):
    """rows: of all requests; verifies: whether some of them verify a draft; before, after: distinct experts a layer, by
    the model's own routing and as loaded; tokens: what the step committed."""

    rows: int
    verifies: bool
    before: float
    after: float
    tokens: int = 0


class Loads:
    """A block in which the steps of a plan are counted while `whole`: those without a prompt's token, each once, though
    shadow steps run twice. Eager, on one device."""

    def __init__(self, plan: Any) -> None:
        self.plan, self.whole = plan, False
        self.steps: list[Step] = []
        self._layers: list[tuple[int, int]] = []
        self._begun: Step | None = None

    def __enter__(self) -> Self:
        self.plan.reroute = self._reroute  # on the plan itself, before the class's
        return self

    def __exit__(self, *_: object) -> None:
        del self.plan.reroute

    def committed(self, tokens: int) -> None:
        """The engine's step is over and has given so many tokens."""
        if self._begun is not None:
            self.steps.append(self._begun._replace(tokens=tokens))
        self._begun = None

    def _reroute(self, logits: Tensor, weights: Tensor, ids: Tensor, layer: int, hidden: Tensor | None = None) -> Any:
        final: Routing | None = type(self.plan).reroute(self.plan, logits, weights, ids, layer, hidden)
        rows = self.plan.rows
        if self.whole and self.plan.trial is None and is_past_prompts(rows):
            pair = [
                len(set(one[: rows.num_rows].flatten().tolist())) for one in (ids, ids if final is None else final.ids)
            ]
            self._layers.append((pair[0], pair[1]))
            if len(self._layers) == len(self.plan.layers):
                before, after = (sum(column) / len(self._layers) for column in zip(*self._layers, strict=True))
                self._begun = Step(rows.num_rows, rows.num_verify_rows > 0, before, after)
                self._layers = []
        return final


def is_past_prompts(rows: Any) -> bool:
    """Whether every row of a plan's step decodes or verifies a draft."""
    verified_apart = rows.num_verify_rows - rows.num_verify_remappable
    return bool(rows.num_rows) and rows.num_rows == rows.num_decode_rows + verified_apart
