"""What one vLLM engine does with a policy: its remapped layers, the rows of the current step, the counts.

A plan is made while the model is built, and becomes the active one whenever its model runner prepares a step: the
operator in the model's graph knows its layer only by number, so that compiled graphs are the same in every process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.disk.store import Store
from lynx_moe.engines.shared.families import SHADOW
from lynx_moe.engines.shared.metrics import Stats
from lynx_moe.engines.shared.options import DRAFT
from lynx_moe.engines.shared.step.tiers import text
from lynx_moe.engines.vllm.launch import goals
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step import cache
from lynx_moe.engines.vllm.step.built import Model, routers_of
from lynx_moe.engines.vllm.step.figures import Figures
from lynx_moe.engines.vllm.step.switched import Switched
from lynx_moe.engines.vllm.step.watch import Watch
from lynx_moe.policies import ModelShape
from lynx_moe.routing import Routing, Rows

_active: list["Plan"] = []


class Plan(Switched):
    """See the module. shape: the model's. graphs: whether CUDA graphs will record the policy. num_drafts: the most
    tokens that are drafted for a request. drafts: whether the model drafts for another one (`drafter.py`). shadow: the
    share of shadow steps. meets: whether other engines wait for this one in every layer (data parallelism)."""

    def __init__(
        self,
        *,
        options: Options,
        shape: ModelShape,
        max_rows: int,
        device: torch.device,
        graphs: bool = False,
        num_drafts: int = 0,
        shadow: float = 0.0,
        meets: bool = False,
    ) -> None:
        super().__init__(options, shape, max_rows, device, graphs=graphs, num_drafts=num_drafts, shadow=shadow)
        self.meets = meets
        self.runners: dict[int, Callable[[], Any]] = {}  # a layer's number -> vLLM's runner of it, while it lives
        self.figures: Figures | None = None
        self.paged: Any = None  # the experts on a disk (`model/paged.py`), whose store is there once weights are loaded
        self.costs: dict[str, Tensor] | None = None  # by layer, what loads cost when a shadow step began
        self.drafter: Any = None  # a DrafterPlan, whose class is made of this one
        self.attached: Any = None  # the scheduler's output as it came, where a runner passes on a copy of it
        self.seal()
        if not self.drafts:
            cache.switched(self.policy.is_identity)

    def seal(self) -> None:
        """All layers, and with them `shape`, are known: counting starts. Raises ValueError if the policy does not fit
        one of them."""
        self.fit()
        if self.graphs:
            self.figures = Figures.of(self.options.guard, len(self.layers), len(self.rows.valid), self.device)
        self.set_guard(self.options.guard)
        self.aim(anew=True)
        self.tune()
        self.reset_stats()

    @property
    def governed(self) -> "Plan":
        """The plan that follows the server's policy: this one, or its drafter's."""
        return self.drafter if self.options.verify == DRAFT and self.drafter is not None else self

    @property
    def named(self) -> str:
        """The server's policy, as it is told of: its spec, or that the batch says which one."""
        return self.policy.spec if self.tuned is None else "tuned"

    @property
    def asked(self) -> str:
        return self.named if self.watch is None else self.watch.ladder[0][0].spec

    @property
    def version(self) -> Any:
        return super().version, id(self.watch), tuple(self.goals.values())

    @property
    def changes(self) -> dict[str, int]:
        return self.governed.policy_changes

    def set_guard(self, options: GuardOptions | None) -> None:
        """Guards the policy from the next step on; None ends it. Raises ValueError for a ladder that does not fit the
        layers, for what CUDA graphs have not recorded, and where a goal or a tuned file moves the policy."""
        if options is not None:
            goals.check_guard(options, self.options, self.goals, tuned=self.tuned is not None)
        asked = self.policy if self.watch is None else self.watch.ladder[0][0]
        watch = Watch(options, self, asked) if options is not None and self.layers else None
        if self.watch is not None:
            self.put(*self.watch.ladder[0])
        self.watch = watch
        if watch is not None:
            self.aim(anew=False)

    def describe(self) -> dict[str, Any]:
        """The server's policy, what requests may ask for by name, and whether the policy can be switched."""
        named = {name: spec or self.named for name, spec in self.options.named.items()}
        return {
            "policy": self.governed.named,
            "tuned": None if self.tuned is None else self.tuned.state(),
            **self.goals,
            "back_off_kl": None if self.bounded is None else self.backs_off,
            "verify": self.options.verify,
            "act_from": self.options.act_from,
            "act_to": self.options.act_to,
            "presets": named,
            "switchable": not self.graphs,
            "recorded": None if self.recorded is None else self.recorded.spec,
            "prices": {text(price): count for price, count in self.tiers.now.items()},
        }

    @property
    def store(self) -> Store | None:
        """Where the model's experts are kept, if not all of them stay in memory."""
        return None if self.paged is None else self.paged.store

    @property
    def tells_residency(self) -> bool:
        return self.options.tells_residency

    def with_costs(self, layer: int, masks: Rows | None) -> Rows | None:
        if self.store is None or not self.tells_residency:
            return masks
        name = self.layers[layer].name
        cost_E = self.store.load_cost(name) if self.costs is None else self.costs[name]
        return replace(masks or Rows(), load_cost_E=cost_E)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What such a pass reads from a disk counts apart."""
        store, kind = self.store, self.rows.kind.value
        if store is not None:
            store.begin(SHADOW)
        try:
            with super().uncounted():
                yield
        finally:
            if store is not None:
                store.begin(kind)

    def model(self) -> Model:
        """What the front end may know of the layers."""
        recorded = None if self.recorded is None else self.recorded.spec
        return Model(shape=self.shape, routers=routers_of(self.layers), recorded=recorded)

    def begin_step(self) -> None:
        """The masks of `rows` are those of the step that comes next."""
        if not self.drafts:
            activate(self)
        kind, within = self.rows.kind, self.options.acts_at(self.rows.num_decode_rows)
        if self.graphs and kind.acts and not within:  # what they have recorded acts in every step
            self.rows.ask(np.zeros_like(self.rows.price_T))
        self.acts = within and self.could_act()
        self.shadow_step()
        self.count_step()
        if self.store is not None:
            self.store.begin(kind.value)
        if self.watch is not None:
            self.watch.begin_step(acts=self.acts)
        if self.shadows is not None and not self.meets:  # not before: what a trial asks is not counted
            self.settle(self.shadows.wish)
        sampled = self.shadows is not None and bool(self.shadows.trials)
        # a pass before the last leaves others in memory
        self.costs = self.store.load_costs() if sampled and self.store is not None and self.tells_residency else None

    def reroute(
        self, logits_TE: Tensor, weights_TK: Tensor, ids_TK: Tensor, layer: int, hidden_TH: Tensor | None = None
    ) -> Routing | None:
        """The final routing of one layer, or None where it is the model's own. A step in which nothing can change is
        left at once."""
        if self.is_passed_by:
            return None
        own = Routing(ids_TK, weights_TK)
        if self.trial is not None:
            return self.tried(self.trial, layer, logits_TE, own)
        watch = self.watch if self.watch is not None and self.watch.wants(layer) else None
        if self.is_idle and not self.options.stats and self.recorder is None and watch is None:
            return None
        final = self.settled(layer, logits_TE, own)
        if watch is not None:
            watch.see(layer, logits_TE, own, final, hidden_TH)
        return None if final is own else final

    def reset_stats(self) -> None:
        self.reset_sums()
        if self.store is not None:
            self.store.reset()
        if self.drafter is not None:
            self.drafter.reset_stats()

    def stats(self) -> Stats:
        return self.told(
            self.layers,
            self.bypassed,
            policy=self.named,
            decision_us=self.decision_us(),
            guard=None if self.watch is None else self.watch.state(),
            shadows=None if self.shadows is None else self.shadows.state(),
            bound=None if self.bounded is None else self.bounded.state(),
            pace=None if self.pace is None else self.pace.state(),
            tuned=None if self.tuned is None else self.tuned.state(),
            disk=None if self.store is None else self.store.told(),
            verified=self.verified.told() if self.rows.speculates else None,
            drafter=None if self.drafter is None else self.drafter.stats(),
        )


def activate(plan: Plan) -> None:
    _active[:] = [plan]


def active(*, drafts: bool = False) -> Plan:
    """The plan of this process's engine, or of the model that drafts for it. Raises RuntimeError if there is none."""
    plan: Plan | None = _active[0] if _active else None
    plan = plan.drafter if plan is not None and drafts else plan
    if plan is None:
        raise RuntimeError(
            "no vLLM engine with lynx_moe runs in this process; start one with additional_config={'lynx_moe': "
            "{'policy': ...}} and VLLM_ENABLE_V1_MULTIPROCESSING=0, or ask it by llm.collective_rpc('lynx_stats')"
        )
    return plan
