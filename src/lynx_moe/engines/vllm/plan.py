"""What one vLLM engine does with a policy: its remapped layers, the rows of the current step, the counts.

A plan is made while the model is built, and becomes the active one whenever its model runner prepares a step: the
operator in the model's graph knows its layer only by number, so that compiled graphs are the same in every process.
"""

import time

import torch
from torch import Tensor

from lynx_moe.engines.layers import Layer, fitted
from lynx_moe.engines.metrics import KINDS, Counters, HostCounters, Kind, Stats, layer_stats
from lynx_moe.engines.recorder import Recorder
from lynx_moe.engines.vllm.options import Options
from lynx_moe.engines.vllm.rows import StepRows
from lynx_moe.policies import ModelShape, Policy, make_policy
from lynx_moe.routing import Routing

_active: list["Plan"] = []


class Plan:
    """See the module. `shape` is the model's, `graphs` whether CUDA graphs will record the policy."""

    def __init__(
        self, *, options: Options, shape: ModelShape, max_rows: int, device: torch.device, graphs: bool = False
    ) -> None:
        self.options, self.shape, self.device, self.graphs = options, shape, device, graphs
        self.layers: list[Layer] = []
        self.bypassed: dict[str, str] = {}
        self.policy: Policy = options.make_policy().for_model(shape)
        self.by_layer: list[Policy] = []
        self.rows = StepRows(max_rows, device)
        self.recorder: Recorder | None = None
        self.has_begun = False
        self.seal()

    def seal(self) -> None:
        """All layers are known: counting starts. Raises ValueError if the policy does not fit one of them."""
        self.by_layer = fitted(self.policy, self.layers, self.shape.name, self.device)
        count = len(self.layers)
        self.counters = HostCounters(count) if self.device.type == "cpu" else Counters(count, self.device)
        self.reset_stats()

    def set_policy(self, spec: str) -> str:
        if self.graphs:
            raise ValueError(
                f"cannot switch to {spec!r}: CUDA graphs have recorded {self.policy.spec!r}; "
                "start the engine with enforce_eager=True, or build one engine per policy"
            )
        policy = make_policy(spec).for_model(self.shape)
        self.by_layer = fitted(policy, self.layers, self.shape.name, self.device)
        self.policy = policy
        return policy.spec

    def begin_step(self) -> None:
        """The masks of `rows` are those of the step that comes next."""
        activate(self)
        kind = self.rows.kind
        self.counters.begin(KINDS.index(kind.value) if kind.acts else None)
        if kind is Kind.IDLE:
            return
        self.steps[kind.value] += 1
        if kind.acts:
            self.row_sums[kind.value][0] += self.rows.num_rows
            self.row_sums[kind.value][1] += self.rows.num_decode_rows

    def reroute(self, logits_TE: Tensor, weights_TK: Tensor, ids_TK: Tensor, layer: int) -> Routing | None:
        """The final routing of one layer, or None where it is the model's own.

        A step in which nothing can change is left at once. CUDA graphs record what happens here in idle runs: when
        they are replayed, only the persistent masks tell steps apart.
        """
        kind = self.rows.kind
        recorded = self.graphs and kind is Kind.IDLE
        if not (kind.acts or recorded or (self.policy.token_level and kind is Kind.SINGLE)):
            return None
        if self.policy.is_identity and not self.options.stats and self.recorder is None:
            return None
        start = time.perf_counter()
        spec, rows = self.layers[layer].spec, self.rows.masks(len(ids_TK))
        own = Routing(ids_TK, weights_TK)
        if self.recorder is not None:
            self.recorder.add(layer, logits_TE, own, rows)
        final = own if self.policy.is_identity else self.by_layer[layer].decide(logits_TE, spec, rows, own)
        if self.options.stats:
            self.counters.add(layer, own, final, spec.num_experts, rows.valid if rows else None)
        self.decisions += 1
        self.decision_seconds += time.perf_counter() - start
        return None if final is own else final

    def without_kernel(self) -> list[str]:
        """Where decisions take the plain-torch definition although a GPU has kernels, each reason once."""
        if self.device.type != "cuda":
            return []
        reasons = (policy.without_kernel(layer.spec) for policy, layer in zip(self.by_layer, self.layers, strict=True))
        return sorted({reason for reason in reasons if reason})

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
        self.row_sums = {kind: [0, 0] for kind in KINDS}
        self.decisions, self.decision_seconds = 0, 0.0
        self.last_log = (time.monotonic(), 0)

    def stats(self) -> Stats:
        names = [layer.name for layer in self.layers]
        counted = layer_stats(names, self.counters.read(), self.steps, self.row_sums)
        timed = self.decisions and self.device.type == "cpu"
        return Stats(
            policy=self.policy.spec,
            steps=dict(self.steps),
            layers=tuple(layer for layer in counted if layer.name not in self.bypassed),
            bypassed_layers=dict(self.bypassed),
            decision_us=1e6 * self.decision_seconds / self.decisions if timed else None,
        )

    def log_line(self) -> str | None:
        """What happened since counting began, if a line is due and there were decode steps since the last one."""
        (then, steps_then), every = self.last_log, self.options.log_every
        steps = self.steps["decode"]
        if not every or not self.options.stats or time.monotonic() - then < every or steps == steps_then:
            return None
        self.last_log = (time.monotonic(), steps)
        stats = self.stats()
        return (
            f"lynx_moe: {stats.mean_before:.1f} -> {stats.mean_after:.1f} distinct experts per layer, {steps} decode "
            f"steps, {stats.steps['mixed']} mixed, {stats.steps['prefill']} prefill, {stats.steps['single']} with one "
            f"row (policy {stats.policy})"
        )


def activate(plan: Plan) -> None:
    _active[:] = [plan]


def active() -> Plan:
    """The plan of this process's engine. Raises RuntimeError if there is none."""
    if not _active:
        raise RuntimeError(
            "no vLLM engine with lynx_moe runs in this process; start one with additional_config={'lynx_moe': "
            "{'policy': ...}} and VLLM_ENABLE_V1_MULTIPROCESSING=0, or ask it by llm.collective_rpc('lynx_stats')"
        )
    return _active[0]
