"""What a plan decides with in the current step: the layers, the rows, whose policies they follow, and a trial's."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.control.tuned import ByBatch
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.pace import Pace
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.counting import Counted
from lynx_moe.engines.vllm.step.requests import Fitted, Requests
from lynx_moe.engines.vllm.step.rows import StepRows, decoding
from lynx_moe.engines.vllm.step.shadows.follow import Follow
from lynx_moe.engines.vllm.step.shadows.passes import EXACT, Shadows, Trial
from lynx_moe.engines.vllm.step.shadows.sample import TIMES, TOLD
from lynx_moe.engines.vllm.step.tiers import Recorded
from lynx_moe.engines.vllm.step.watch import Watch
from lynx_moe.policies import Policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import Routing, Rows

logger = logging.getLogger("vllm.lynx_moe")


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
        self.pace: Pace | None = None  # where a latency objective says which share of the prices
        self.tuned: ByBatch | None = None  # where the size of the batch says the policy
        self.settings: dict[str, Fitted] = {}
        self.watch: Watch | None = None
        self.trial: Trial | None = None  # what decides instead, in a pass that does not stay

    def check(self, spec: str) -> Fitted:
        """What a request gets that asks for a spec. Raises ValueError."""
        raise NotImplementedError

    def put(self, policy: Policy, by_layer: list[Policy]) -> None:
        """From the next step on the server's policy is this one."""
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

    def tune(self) -> None:
        """All layers are known: every tuned setting fits them. Raises ValueError."""
        if self.options.tuned is None:
            return
        specs = self.options.tuned.specs
        try:
            self.settings = {spec: self.check(spec) for spec in specs}
        except Recorded:
            raise ValueError(
                f"tuned: CUDA graphs record one policy, and the settings are of several: {', '.join(specs)}; tune one "
                "policy at several prices, or start the engine with enforce_eager=True"
            ) from None
        self.tuned = ByBatch(self.options.tuned)

    def begin_batch(
        self, past_prompt_R: np.ndarray, scheduled_R: np.ndarray, drafts_R: np.ndarray, req_ids: Sequence[str]
    ) -> None:
        """Before the rows of a step: what acts in it, where that is tuned. The batch: rows that the server's policy or
        their request's may remap."""
        if self.pace is not None:
            self.pace.begin(past_prompt_R, req_ids)
        if self.tuned is None:
            return
        may_R, _ = decoding(past_prompt_R, scheduled_R, drafts_R, self.requests.remaps_drafts(req_ids))
        rows = int(scheduled_R[may_R & ~self.requests.exact(req_ids)].sum())
        if rows:
            self.put(*self.settings[self.tuned.at(rows)])

    def bound_anew(self, number: int) -> None:
        """The server's policy is new, the `number`th: its prices are sought from the beginning."""
        bounded = self.options.max_kl is not None and not self.policy.is_identity and self.shadows is not None
        self.bounded = Follow(self.options.max_kl or 0.0, self.policy, number) if bounded else None
        goal = self.options.slo_tpot_ms
        self.pace = None if goal is None or self.policy.is_identity else Pace(goal, self.policy)

    def hear(self, scheduler_output: Any) -> None:
        """What all workers are told at this step of the ones before it: drafts, times, shadow steps."""
        self.verified.add(scheduler_output)
        if self.pace is not None:
            for timed in getattr(scheduler_output, TIMES, ()):
                self.pace.hear(timed)
        if self.shadows is not None:
            for sample in getattr(scheduler_output, TOLD, ()):
                self.shadows.sums.add(sample)
                if line := self.shadows.gains.add(sample):
                    logger.info(line)
                if self.bounded is not None:
                    self.bounded.hear(sample)
                elif self.watch is not None:
                    self.watch.hear(sample)

    def shadow_step(self) -> tuple[Any, dict[str, Trial]] | None:
        """The prices of this step, where a bound or an objective says them; what is tried in it, if it is a shadow
        step."""
        rows, shadows, pace = self.rows, self.shadows, self.pace
        batch, acts = rows.num_decode_rows, self.acts and rows.num_decode_rows > 0
        kin_T, price_T = rows.first_T & self.requests.kin, rows.price_T
        if acts and self.bounded is not None:
            rows.ask(self.bounded.prices(price_T, kin_T, batch))
        if acts and pace is not None:
            rows.ask(pace.prices(rows.price_T, kin_T, batch))
        if shadows is None:
            return None
        at, trials, due = None, dict[str, Trial](), None
        if acts and self.bounded is not None:
            due = self.bounded.due(batch)
            whole = pace is None or pace.whole(batch)
            at, trials = self.bounded.trials(price_T, kin_T, batch, whole=whole)
        elif acts and self.watch is not None:
            at, trials = self.watch.trials()
        changes = rows.asking and not all(policy.is_identity for policy in self.deciding)
        if not shadows.begin_step(acts=acts and (changes or bool(trials)), batch=batch, due=due):
            return None
        if pace is not None:
            pace.leave_out()
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
