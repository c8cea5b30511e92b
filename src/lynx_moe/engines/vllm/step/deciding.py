"""What a plan decides with in the current step, beyond what engines share: drafts, shadow steps, trials, prices that
move."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.control.tuned import ByBatch
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.shared.pace import Pace
from lynx_moe.engines.shared.step import deciding as shared
from lynx_moe.engines.shared.step.requests import Fitted
from lynx_moe.engines.shared.step.rows import StepRows, decoding
from lynx_moe.engines.shared.step.tiers import Recorded
from lynx_moe.engines.shared.switching import GOALS
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.shadows.follow import Follow
from lynx_moe.engines.vllm.step.shadows.passes import EXACT, Shadows, Trial
from lynx_moe.engines.vllm.step.shadows.sample import TIMES, TOLD
from lynx_moe.engines.vllm.step.verified import Verified
from lynx_moe.engines.vllm.step.watch import Watch
from lynx_moe.policies import ModelShape
from lynx_moe.routing import Routing

logger = logging.getLogger("vllm.lynx_moe")


class Deciding(shared.Deciding):
    """num_drafts: the most tokens that are drafted for a request. shadow: the share of shadow steps."""

    options: Options

    def __init__(
        self,
        options: Options,
        shape: ModelShape,
        max_rows: int,
        device: torch.device,
        *,
        graphs: bool,
        num_drafts: int,
        shadow: float,
    ) -> None:
        self.verified = Verified(num_drafts)
        super().__init__(options, shape, max_rows, device, graphs=graphs, speculates=num_drafts > 0)
        self.shadows = Shadows(shadow) if shadow else None
        self.bounded: Follow | None = None  # where a bound on the KL says the prices
        self.pace: Pace | None = None  # where a latency objective says which share of the prices
        self.goals: dict[str, Any] = {name: getattr(options, name) for name in GOALS}  # what is asked of them now
        self.backs_off = options.back_off_kl
        self.searches = 0  # of bounds and of guards, in this engine, so that late samples find their own
        self.tuned: ByBatch | None = None  # where the size of the batch says the policy
        self.settings: dict[str, Fitted] = {}
        self.watch: Watch | None = None
        self.trial: Trial | None = None  # what decides instead, in a pass that does not stay

    def count(self, rows: StepRows, *, acts: bool, known: bool) -> None:
        super().count(rows, acts=acts, known=known)
        if rows.kind is not Kind.IDLE:
            self.verified.count(rows)

    def reset_sums(self) -> None:
        super().reset_sums()
        self.verified.reset()

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
            decodes_R, _ = decoding(past_prompt_R, scheduled_R, drafts_R, True)
            self.pace.begin(decodes_R, req_ids)
        if self.tuned is None:
            return
        may_R, _ = decoding(past_prompt_R, scheduled_R, drafts_R, self.requests.remaps_drafts(req_ids))
        rows = int(scheduled_R[may_R & ~self.requests.exact(req_ids)].sum())
        if rows:
            self.put(*self.settings[self.tuned.at(rows)])

    def aim(self, *, anew: bool) -> None:
        """The server's policy or its goals are others, from the next step on. anew: the policy is, so that nothing
        holds that was learnt of the one before. It backs off only from the policy that the server began with: one that
        is switched to is as it was named, and a guard backs off by itself."""
        most, goal_ms = (None if self.policy.is_identity else self.goals[name] for name in GOALS)
        seeks = most is not None
        if seeks or self.policy_changes["operator"] or self.watch is not None:
            self.backs_off = None
        if most is None and not self.policy.is_identity:
            most = self.backs_off
        if most is None or self.shadows is None:
            self.bounded = None
        elif anew or self.bounded is None or self.bounded.bound.seeks != seeks:
            self.searches += 1
            self.bounded = Follow(most, self.policy, self.searches, seeks=seeks)
        else:
            self.bounded.aim(most)
        if goal_ms is None:
            self.pace = None
        elif anew or self.pace is None:
            self.pace = Pace(goal_ms, self.policy)
        else:
            self.pace.aim(goal_ms)

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

    def shadow_step(self) -> None:
        """The prices of this step, where a bound or an objective says them; what is tried in it, should it be a shadow
        step, and whether it asks to be one."""
        rows, shadows, pace = self.rows, self.shadows, self.pace
        batch, acts = rows.num_decode_rows, self.acts and rows.num_decode_rows > 0
        kin_T, price_T = rows.first_T & self.requests.kin, rows.price_T
        if acts and self.bounded is not None:
            rows.ask(self.bounded.prices(price_T, kin_T, batch))
        if acts and pace is not None:
            rows.ask(pace.prices(rows.price_T, kin_T, batch))
        if shadows is None:
            return
        at, trials, due = None, dict[str, Trial](), None
        if acts and self.bounded is not None:
            due = self.bounded.due(batch)
            whole = pace is None or pace.whole(batch)
            at, trials = self.bounded.trials(price_T, kin_T, batch, whole=whole)
        elif acts and self.watch is not None:
            at, trials = self.watch.trials()
        changes = acts and rows.asking and not all(policy.is_identity for policy in self.deciding)
        server_T = rows.remap_T if rows.server_T is None else rows.server_T
        exact = not bool(rows.price_T[server_T].any())
        passes = ({EXACT: Trial()} if changes else {}) | trials
        shadows.begin_step(at, passes, batch=batch, due=due, exact=exact)

    def settle(self, passes: int) -> None:
        """So many passes of this step are made before the one that stays."""
        if self.shadows is None or not passes:
            return
        if self.pace is not None:
            self.pace.leave_out()
        if not self.shadows.settle(passes):
            return
        if self.bounded is None:
            self.shadows.turns.taken()
        else:
            self.bounded.taken(self.shadows.batch)

    @contextmanager
    def instead(self, trial: Trial) -> Iterator[None]:
        """In here a pass of this step runs that does not stay (`shadows/`)."""
        self.trial = trial
        try:
            with self.uncounted(), self.rows.instead(trial.price_T):
                yield
        finally:
            self.trial = None
