"""What decides in the layers of one engine: its remapped layers, the rows of the current step, whose policies they
follow, the counts. Engines add what is theirs: how a step begins, and who watches."""

import time
from typing import Any

import torch
from torch import Tensor

from lynx_moe.engines.shared.layers import Layer, fitted, tried_on
from lynx_moe.engines.shared.metrics import Kind, Stats
from lynx_moe.engines.shared.options import Serving
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.engines.shared.step.counting import Counted
from lynx_moe.engines.shared.step.requests import Fitted, Requests
from lynx_moe.engines.shared.step.rows import StepRows
from lynx_moe.engines.shared.step.tiers import reach
from lynx_moe.policies import ModelShape, Policy, make_policy
from lynx_moe.policies.contract.groups import decide_groups
from lynx_moe.routing import Routing, Rows


class Deciding(Counted):
    """policy, by_layer: the server's, and each layer's. shape: the model's. bypassed: layer -> why it keeps its own
    routing. graphs: whether CUDA graphs will record the policy; recorded: then, which one. speculates: steps may verify
    drafts."""

    policy: Policy
    by_layer: list[Policy]

    def __init__(
        self,
        options: Serving,
        shape: ModelShape,
        max_rows: int,
        device: torch.device,
        *,
        graphs: bool,
        speculates: bool = False,
    ) -> None:
        super().__init__()
        self.options, self.shape, self.device, self.graphs = options, shape, device, graphs
        self.layers: list[Layer] = []
        self.bypassed: dict[str, str] = {}
        self.rows = StepRows(max_rows, device, graphs=graphs, speculates=speculates)
        self.requests = Requests(options, self.check, lambda: (self.policy, self.by_layer))
        self.recorded: Policy | None = None
        self.recorder: Recorder | None = None
        self.policy_changes = {"operator": 0, "guard": 0}
        self.has_begun = self.acts = False  # acts: whether the policy can do something in this step

    def fit(self) -> None:
        """All layers, and with them `shape`, are known. Raises ValueError if the policy does not fit one of them."""
        self.policy = make_policy(self.options.for_target).for_model(self.shape)
        self.recorded = self.policy if self.graphs else None
        self.by_layer = self.fitted(self.policy)
        tried_on(self.by_layer, self.layers, self.device, residency=self.tells_residency)
        self.count_on(len(self.layers), self.device)

    def check(self, spec: str) -> Fitted:
        """What `set_policy` would switch to, or a request gets that asks for it: the policy, and each layer's. Raises
        ValueError where it cannot, and changes nothing; Recorded is the one that no other spec would mend."""
        policy = make_policy(spec).for_model(self.shape)
        by_layer = self.fitted(policy)
        tried_on(by_layer, self.layers, self.device, residency=self.tells_residency)
        reach(self.recorded, policy, spec)
        return policy, by_layer

    def fitted(self, policy: Policy) -> list[Policy]:
        """Each layer's. Raises ValueError as `layers.fitted`."""
        return fitted(policy, self.layers, self.shape.name, self.device, residency=self.tells_residency)

    @property
    def tells_residency(self) -> bool:
        """Whether decisions may know which experts are in memory."""
        return False

    def with_costs(self, layer: int, masks: Rows | None) -> Rows | None:
        """The rows of a step, with what loading experts of this layer costs where decisions may know it."""
        return masks

    def put(self, policy: Policy, by_layer: list[Policy]) -> None:
        """From the next step on. What graphs have recorded stays: rows then ask what the new policy does."""
        self.policy = policy
        if self.recorded is None:
            self.by_layer = by_layer

    @property
    def named(self) -> str:
        """The server's policy, as it is told of."""
        return self.policy.spec

    @property
    def asked(self) -> str:
        """The policy that the operator asked for, whatever is in force."""
        return self.named

    @property
    def version(self) -> Any:
        """Another one when there is something new to tell."""
        return tuple(self.steps.values()), tuple(self.changes.values())

    @property
    def changes(self) -> dict[str, int]:
        """Of the server's policy, by who made them."""
        return self.policy_changes

    @property
    def deciding(self) -> list[Policy]:
        """The policies of the current step, in turn."""
        return [policy for policy, _ in self.requests.step] or [self.policy]

    @property
    def is_idle(self) -> bool:
        """Whether nothing can change in this step, other than by being recorded in a graph."""
        return all(policy.is_identity for policy in self.deciding) or not (self.rows.always or self.rows.asking)

    @property
    def is_passed_by(self) -> bool:
        """Whether no layer of this step is looked at. CUDA graphs record what is done in idle runs: when they are
        replayed, only the persistent masks tell steps apart."""
        return not (self.acts or (self.graphs and self.rows.kind is Kind.IDLE))

    def could_act(self) -> bool:
        """Whether the policies could do something in a step of such rows."""
        kind = self.rows.kind
        return kind.acts and (kind is not Kind.SINGLE or any(policy.acts_alone for policy in self.deciding))

    def count_step(self) -> None:
        """A step begins, in which `acts` says whether the policy does."""
        known = all(policy.knows_prices or policy.is_identity for policy in self.deciding)
        self.count(self.rows, acts=self.acts, known=known)

    def settled(self, layer: int, logits_TE: Tensor, own: Routing) -> Routing:
        """The final routing of one layer of the step, counted and recorded; `own` itself where nothing changes."""
        start = time.perf_counter()
        spec, masks = self.layers[layer].spec, self.rows.masks(len(own.ids))
        if self.recorder is not None:
            self.recorder.add(layer, logits_TE, own, masks)
        valid_T = masks.valid if masks else None
        final = own if self.is_idle else self.fit_for_kernels(self.decided(layer, logits_TE, own, masks), own)
        if self.options.stats:
            self.counters.add(layer, own, final, spec.num_experts, valid_T, self.layers[layer].here_E)
        self.decisions += 1
        self.decision_seconds += time.perf_counter() - start
        return final

    def fit_for_kernels(self, final: Routing, own: Routing) -> Routing:
        """What this engine's expert kernels can take of a decision."""
        return final

    def decided(
        self, layer: int, logits_TE: Tensor, own: Routing, masks: Rows | None, first: list[Policy] | None = None
    ) -> Routing:
        """By the policies of the step; `first` instead of the server's."""
        spec, step = self.layers[layer].spec, self.requests.step
        masks = self.with_costs(layer, masks)
        server = first or (step[0][1] if step else self.by_layer)
        if len(step) > 1:
            fits = [server, *(fits for _, fits in step[1:])]
            parts = [(one[layer], mask[: len(logits_TE)]) for one, mask in zip(fits, self.rows.groups, strict=True)]
            return decide_groups(parts, logits_TE, spec, own, masks)
        return server[layer].decide(logits_TE, spec, masks, own)

    def record(self, max_bytes: int) -> Recorder:
        """From the next step on, keep the router logits of steps that reach the policy, until `recorder` is None."""
        if self.graphs:
            raise ValueError("CUDA graphs leave no room for recording; start the engine without them")
        numbered = {number: layer for number, layer in enumerate(self.layers) if layer.name not in self.bypassed}
        self.recorder = Recorder(numbered, max_bytes)
        return self.recorder

    def decision_us(self) -> float | None:
        """Mean microseconds of a decision; None where the host does not wait for it."""
        timed = self.decisions and self.device.type == "cpu"
        return 1e6 * self.decision_seconds / self.decisions if timed else None

    def stats(self) -> Stats:
        """What happened since counting began. Waits for the device."""
        return self.told(self.layers, self.bypassed, policy=self.named, decision_us=self.decision_us())
