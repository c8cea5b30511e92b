"""What one vLLM engine does with a policy: its remapped layers, the rows of the current step, the counts.

A plan is made while the model is built, and becomes the active one whenever its model runner prepares a step: the
operator in the model's graph knows its layer only by number, so that compiled graphs are the same in every process.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.layers import Layer, fitted, tried_on
from lynx_moe.engines.shared.metrics import KINDS, Counters, HostCounters, Kind, Stats, layer_stats
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.engines.vllm.launch.options import DRAFT, Options
from lynx_moe.engines.vllm.step import cache
from lynx_moe.engines.vllm.step.built import Model, routers_of
from lynx_moe.engines.vllm.step.figures import Figures
from lynx_moe.engines.vllm.step.requests import Requests
from lynx_moe.engines.vllm.step.rows import StepRows
from lynx_moe.engines.vllm.step.tiers import Tiers, reach, text
from lynx_moe.engines.vllm.step.verified import Verified
from lynx_moe.engines.vllm.step.watch import Watch
from lynx_moe.policies import ModelShape, Policy, make_policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import Routing

_active: list["Plan"] = []


class Plan:
    """See the module. shape: the model's. graphs: whether CUDA graphs will record the policy. num_drafts: the most
    tokens that are drafted for a request. drafts: whether the model drafts for another one (`drafter.py`)."""

    drafts = False

    def __init__(
        self,
        *,
        options: Options,
        shape: ModelShape,
        max_rows: int,
        device: torch.device,
        graphs: bool = False,
        num_drafts: int = 0,
    ) -> None:
        self.options, self.shape, self.device, self.graphs = options, shape, device, graphs
        self.layers: list[Layer] = []
        self.bypassed: dict[str, str] = {}
        self.policy: Policy
        self.by_layer: list[Policy]
        self.recorded: Policy | None = None
        self.rows = StepRows(max_rows, device, graphs=graphs, speculates=num_drafts > 0)
        self.verified = Verified(num_drafts)
        self.requests = Requests(options, self.check, lambda: (self.policy, self.by_layer))
        self.recorder: Recorder | None = None
        self.runners: dict[int, Callable[[], Any]] = {}  # a layer's number -> vLLM's runner of it, while it lives
        self.watch: Watch | None = None
        self.figures: Figures | None = None
        self.drafter: Any = None  # a DrafterPlan, whose class is made of this one
        self.policy_changes = {"operator": 0, "guard": 0}
        self.has_begun = self.acts = False
        self.tiers = Tiers()
        self.seal()
        if not self.drafts:
            cache.switched(self.policy.is_identity)

    def seal(self) -> None:
        """All layers, and with them `shape`, are known: counting starts. Raises ValueError if the policy does not fit
        one of them."""
        self.policy = make_policy(self.options.for_target).for_model(self.shape)
        self.recorded = self.policy if self.graphs else None
        self.by_layer = fitted(self.policy, self.layers, self.shape.name, self.device)
        tried_on(self.by_layer, self.layers, self.device)
        on_host = self.device.type == "cpu"
        self.counters = HostCounters(len(self.layers)) if on_host else Counters(len(self.layers), self.device)
        if self.graphs:
            self.figures = Figures.of(self.options.guard, len(self.layers), len(self.rows.valid), self.device)
        self.set_guard(self.options.guard)
        self.reset_stats()

    def check(self, spec: str) -> tuple[Policy, list[Policy]]:
        """What `set_policy` would switch to, or a request gets that asks for it: the policy, and each layer's. Raises
        ValueError where it cannot, and changes nothing; Recorded is the one that no other spec would mend."""
        policy = make_policy(spec).for_model(self.shape)
        by_layer = fitted(policy, self.layers, self.shape.name, self.device)
        tried_on(by_layer, self.layers, self.device)
        reach(self.recorded, policy, spec)
        return policy, by_layer

    def put(self, policy: Policy, by_layer: list[Policy]) -> None:
        """From the next step on. What graphs have recorded stays: rows then ask what the new policy does."""
        self.policy = policy
        if self.recorded is None:
            self.by_layer = by_layer

    @property
    def governed(self) -> "Plan":
        """The plan that follows the server's policy: this one, or its drafter's."""
        return self.drafter if self.options.verify == DRAFT and self.drafter is not None else self

    def set_policy(self, spec: str) -> str:
        self.put(*self.check(spec))
        self.policy_changes["operator"] += 1
        if self.watch is not None:
            self.watch.restart(self.policy)
        if not self.drafts:
            cache.switched(self.policy.is_identity)
        return self.policy.spec

    def set_guard(self, options: GuardOptions | None) -> None:
        """Guards the policy from the next step on; None ends it. Raises ValueError for a ladder that does not fit the
        layers, and for what CUDA graphs have not recorded."""
        asked = self.policy if self.watch is None else self.watch.ladder[0][0]
        watch = Watch(options, self, asked) if options is not None and self.layers else None
        if self.watch is not None:
            self.put(*self.watch.ladder[0])
        self.watch = watch

    def describe(self) -> dict[str, Any]:
        """The server's policy, what requests may ask for by name, and whether the policy can be switched."""
        named = {name: spec or self.policy.spec for name, spec in self.options.named.items()}
        return {
            "policy": self.governed.policy.spec,
            "verify": self.options.verify,
            "presets": named,
            "switchable": not self.graphs,
            "recorded": None if self.recorded is None else self.recorded.spec,
            "prices": {text(price): count for price, count in self.tiers.now.items()},
        }

    def model(self) -> Model:
        """What the front end may know of the layers."""
        recorded = None if self.recorded is None else self.recorded.spec
        return Model(shape=self.shape, routers=routers_of(self.layers), recorded=recorded)

    def begin_step(self) -> None:
        """The masks of `rows` are those of the step that comes next."""
        if not self.drafts:
            activate(self)
        kind = self.rows.kind
        self.acts = kind.acts and (kind is not Kind.SINGLE or any(policy.acts_alone for policy in self.deciding))
        self.counters.begin(KINDS.index(kind.value) if self.acts else None)
        if self.watch is not None:
            self.watch.begin_step(acts=self.acts)
        if kind is Kind.IDLE:
            return
        self.steps[kind.value] += 1
        self.acted[kind.value] += self.acts
        counts = (self.rows.num_rows, self.rows.num_decode_rows if self.acts else 0, self.rows.num_exact_rows)
        for column, count in enumerate(counts):
            self.row_sums[kind.value][column] += count
        self.verified.count(self.rows)
        known = self.acts and all(policy.knows_prices or policy.is_identity for policy in self.deciding)
        self.tiers.add(self.rows.tiers() if known else {})

    @property
    def deciding(self) -> list[Policy]:
        """The policies of the current step, in turn."""
        return [policy for policy, _ in self.requests.step] or [self.policy]

    def reroute(
        self, logits_TE: Tensor, weights_TK: Tensor, ids_TK: Tensor, layer: int, hidden_TH: Tensor | None = None
    ) -> Routing | None:
        """The final routing of one layer, or None where it is the model's own.

        A step in which nothing can change is left at once. CUDA graphs record what happens here in idle runs: when
        they are replayed, only the persistent masks tell steps apart.
        """
        rows, step = self.rows, self.requests.step
        if not (self.acts or (self.graphs and rows.kind is Kind.IDLE)):
            return None
        watch = self.watch if self.watch is not None and self.watch.wants(layer) else None
        idle = all(policy.is_identity for policy in self.deciding) or not (self.rows.always or rows.num_decode_rows)
        if idle and not self.options.stats and self.recorder is None and watch is None:
            return None
        start = time.perf_counter()
        spec, masks = self.layers[layer].spec, rows.masks(len(ids_TK))
        own = Routing(ids_TK, weights_TK)
        if self.recorder is not None:
            self.recorder.add(layer, logits_TE, own, masks)
        valid_T = masks.valid if masks else None
        if idle:
            final = own
        elif len(step) > 1:
            parts = [(fits[layer], mask[: len(ids_TK)]) for (_, fits), mask in zip(step, rows.groups, strict=True)]
            final = decide_groups(parts, logits_TE, spec, own, masks)
        else:
            by_layer = step[0][1] if step else self.by_layer
            final = by_layer[layer].decide(logits_TE, spec, masks, own)
        if self.options.stats:
            self.counters.add(layer, own, final, spec.num_experts, valid_T, self.layers[layer].here_E)
        self.decisions += 1
        self.decision_seconds += time.perf_counter() - start
        if watch is not None:
            watch.see(layer, logits_TE, own, final, hidden_TH)
        return None if final is own else final

    def record(self, max_bytes: int) -> Recorder:
        """From the next step on, keep the router logits of steps that reach the policy, until `recorder` is None."""
        if self.graphs:
            raise ValueError("CUDA graphs leave no room for recording; start the engine with enforce_eager=True")
        numbered = {number: layer for number, layer in enumerate(self.layers) if layer.name not in self.bypassed}
        self.recorder = Recorder(numbered, max_bytes)
        return self.recorder

    def reset_stats(self) -> None:
        self.counters.reset()
        self.steps = {kind.value: 0 for kind in Kind if kind is not Kind.IDLE}
        self.acted = dict.fromkeys(self.steps, 0)  # of these, where the policy could do something
        self.row_sums = {kind: [0, 0, 0] for kind in self.steps}
        self.decisions, self.decision_seconds = 0, 0.0
        self.tiers.reset()
        self.verified.reset()
        self.last_log = (time.monotonic(), 0)
        if self.drafter is not None:
            self.drafter.reset_stats()

    def stats(self) -> Stats:
        counted = layer_stats([layer.name for layer in self.layers], self.counters.read(), self.acted, self.row_sums)
        timed = self.decisions and self.device.type == "cpu"
        return Stats(
            policy=self.policy.spec,
            steps=dict(self.steps),
            layers=tuple(layer for layer in counted if layer.name not in self.bypassed),
            bypassed_layers=dict(self.bypassed),
            decision_us=1e6 * self.decision_seconds / self.decisions if timed else None,
            guard=None if self.watch is None else self.watch.state(),
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
