"""What a plan decides with in the current step: the layers, the rows, whose policies they follow, and a trial's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.counting import Counted
from lynx_moe.engines.vllm.step.requests import Fitted, Requests
from lynx_moe.engines.vllm.step.rows import StepRows
from lynx_moe.engines.vllm.step.shadows.follow import Follow
from lynx_moe.engines.vllm.step.shadows.passes import EXACT, Shadows, Trial
from lynx_moe.engines.vllm.step.shadows.sample import TOLD
from lynx_moe.engines.vllm.step.watch import Watch
from lynx_moe.policies import Policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import Routing, Rows


class Deciding(Counted):
    """policy, by_layer: the server's, and each layer's."""

    policy: Policy
    by_layer: list[Policy]

    acts: bool  # whether the policy can do something in this step

    def __init__(
        self,
        options: Options,
        max_rows: int,
        device: torch.device,
        *,
        graphs: bool,
        num_drafts: int,
        shadow: float,
    ) -> None:
        super().__init__(num_drafts)
        self.options, self.device, self.graphs = options, device, graphs
        self.layers: list[Layer] = []
        self.rows = StepRows(max_rows, device, graphs=graphs, speculates=num_drafts > 0)
        self.requests = Requests(options, self.check, lambda: (self.policy, self.by_layer))
        self.shadows = Shadows(shadow) if shadow else None
        self.bounded: Follow | None = None  # where `max_kl` says the prices
        self.watch: Watch | None = None
        self.trial: Trial | None = None  # what decides instead, in a pass that does not stay

    def check(self, spec: str) -> Fitted:
        """What a request gets that asks for a spec. Raises ValueError."""
        raise NotImplementedError

    @property
    def deciding(self) -> list[Policy]:
        """The policies of the current step, in turn."""
        return [policy for policy, _ in self.requests.step] or [self.policy]

    def decided(
        self, layer: int, logits_TE: Tensor, own: Routing, masks: Rows | None, first: list[Policy] | None = None
    ) -> Routing:
        """By the policies of the step; `first` instead of the server's."""
        spec, step = self.layers[layer].spec, self.requests.step
        server = first or (step[0][1] if step else self.by_layer)
        if len(step) > 1:
            fits = [server, *(fits for _, fits in step[1:])]
            parts = [(one[layer], mask[: len(logits_TE)]) for one, mask in zip(fits, self.rows.groups, strict=True)]
            return decide_groups(parts, logits_TE, spec, own, masks)
        return server[layer].decide(logits_TE, spec, masks, own)

    def tried(self, trial: Trial, layer: int, logits_TE: Tensor, own: Routing) -> Routing | None:
        """In a pass that does not stay: nothing is counted, sampled or recorded."""
        if trial.price_T is None or not self.rows.asking:
            return None
        final = self.decided(layer, logits_TE, own, self.rows.masks(len(logits_TE)), trial.by_layer)
        return None if final is own else final

    def bound_anew(self, number: int) -> None:
        """The server's policy is new, the `number`th: its prices are sought from the beginning."""
        bounded = self.options.max_kl is not None and not self.policy.is_identity and self.shadows is not None
        self.bounded = Follow(self.options.max_kl or 0.0, self.policy, number) if bounded else None

    def hear(self, scheduler_output: Any) -> None:
        """What all workers are told at this step of the drafts and shadow steps before it."""
        self.verified.add(scheduler_output)
        if self.shadows is not None:
            for sample in getattr(scheduler_output, TOLD, ()):
                self.shadows.sums.add(sample)
                if self.bounded is not None:
                    self.bounded.hear(sample)
                elif self.watch is not None:
                    self.watch.hear(sample)

    def shadow_step(self) -> tuple[Any, dict[str, Trial]] | None:
        """The prices of this step, where a bound says them; what is tried in it, if it is a shadow step."""
        rows, shadows = self.rows, self.shadows
        if shadows is None:
            return None
        batch, acts = rows.num_decode_rows, self.acts and rows.num_decode_rows > 0
        at, trials, due = None, dict[str, Trial](), None
        if acts and self.bounded is not None:
            kin_T, price_T = rows.first_T & self.requests.kin, rows.price_T
            rows.ask(self.bounded.prices(price_T, kin_T, batch))
            due = self.bounded.due(batch)
            at, trials = self.bounded.trials(price_T, kin_T, batch)
        elif acts and self.watch is not None:
            at, trials = self.watch.trials()
        changes = rows.asking and not all(policy.is_identity for policy in self.deciding)
        if not shadows.begin_step(acts=acts and (changes or bool(trials)), batch=batch, due=due):
            return None
        return at, ({EXACT: Trial()} if changes else {}) | trials

    @contextmanager
    def instead(self, trial: Trial) -> Iterator[None]:
        """In here a pass of this step runs that does not stay (`shadows/`)."""
        self.trial = trial
        try:
            with self.uncounted(), self.rows.instead(trial.price_T):
                yield
        finally:
            self.trial = None
