"""A policy on one transformers model: what is replaced while it is installed, and what it did."""

import inspect
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, Self

import torch

from lynx_moe.engines.shared.layers import Layer, fitted
from lynx_moe.engines.shared.metrics import KINDS, Kind, Stats, layer_stats
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.engines.transformers.cache import cache_in, past_length
from lynx_moe.engines.transformers.counters import STEPS, StepCounters
from lynx_moe.engines.transformers.generation import Generation
from lynx_moe.engines.transformers.layouts import Choice
from lynx_moe.engines.transformers.model import checked, decoder_of, generator_of, layers_of, shape_of
from lynx_moe.engines.transformers.rows import PHASES, StepRows, given, of_forward
from lynx_moe.engines.transformers.table import Found
from lynx_moe.engines.transformers.wrap import Wraps, is_wrapped
from lynx_moe.policies import Placement, Policy, make_policy
from lynx_moe.routing import Routing, Rows


class Run:
    """Made by `apply`. A `with` block installs it and removes it, as `install()` and `remove()` do.

    policy    the policy, with knobs that were left open filled in for this model.
    shape     what policies with published settings know the model by.
    layers    the remapped layers in order: name and router rule.
    bypassed  MoE layers that keep the model's own routing: name -> why.
    rows      your own masks and prices, and which rows verify drafts, for every forward from now on, [batch * new
              tokens], sequence by sequence; they go before `phase` and all that is detected. None: detect.
    watch     called with a layer, its own routing and the policy's in every step in which rows may be remapped, but for
              steps that torch.compile runs. None: nobody looks.
    """

    def __init__(
        self, model: Any, policy: str | Policy, phase: str, layers: Collection[int] | None, ranks: int = 1
    ) -> None:
        if phase not in PHASES:
            raise ValueError(f"phase={phase!r} is unknown; allowed: {', '.join(PHASES)}")
        self._model, self._phase = checked(model), phase
        self._found, unfit, left = layers_of(self._model, layers)
        self._unfit, self.bypassed = unfit, {**unfit, **left}
        self.layers: tuple[Layer, ...] = tuple(one.layer for one in self._found)
        if ranks != 1:
            self.layers = tuple(_on_ranks(layer, ranks, next(self._model.parameters()).device) for layer in self.layers)
        self.shape = shape_of(self._model, self.layers[0].spec)
        self.policy: Policy = (make_policy(policy) if isinstance(policy, str) else policy).for_model(self.shape)
        self._by_layer = fitted(self.policy, self.layers, self.shape.name, next(self._model.parameters()).device)
        self.recorder: Recorder | None = None
        self.rows: Rows | None = None
        self.watch: Callable[[Layer, Routing, Routing], None] | None = None
        names = [layer.name for layer in self.layers]
        self._decoder, self._generator = decoder_of(self._model, names), generator_of(self._model, names)
        self._names = tuple(inspect.signature(self._decoder.forward).parameters)
        self._generation = Generation(self._generator, phase, self._warn_of_copies)
        self._step: StepRows | None = None
        self._asked: set[int] = set()  # the layers whose router was asked in this step
        self._warned: set[str] = set()
        self._wraps = Wraps()
        with torch.inference_mode(False):  # else nothing outside this very inference_mode block could add to the counts
            device = next(self._model.parameters()).device
            self._counters = StepCounters(len(self.layers), device, acts_alone=self.policy.acts_alone)

    def install(self) -> Self:
        """From now on the policy acts. Raises ValueError if one acts on this model already."""
        if is_wrapped(self._decoder, "forward"):
            raise ValueError("a policy acts on this model already; leave its block, or call remove() on it, first")
        self._wraps.add(self._decoder, "forward", self._forward)
        for number, one in enumerate(self._found):
            self._wraps.add(one.picker, one.row.method, self._around(number, one))
        if self._generator is not None:
            self._wraps.add(self._generator, "generate", self._generation.generate)
            self._wraps.add(self._generator, "prepare_inputs_for_generation", self._generation.prepare)
        for name, reason in self._unfit.items():
            self._warn(f"layer {name} keeps the model's own routing: {reason}")
        self._warn_of_copies()
        return self

    def remove(self) -> None:
        """The model is as it was before `install`. Counts stay readable."""
        self._wraps.undo()

    def __enter__(self) -> Self:
        return self.install()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def stats(self) -> Stats:
        """What the policy did since the last reset, from the ids that the experts got. Waits for the device."""
        counted = dict(zip((kind.value for kind in STEPS), self._counters.steps.tolist(), strict=True))
        rows = dict(zip(KINDS, self._counters.rows.tolist(), strict=True))
        acted = counted if self.policy.acts_alone else {**counted, Kind.SINGLE.value: 0}
        layers = layer_stats([layer.name for layer in self.layers], self._counters.read(), acted, rows)
        remapped = tuple(layer for layer in layers if layer.name not in self.bypassed)
        return Stats(policy=self.policy.spec, steps=counted, layers=remapped, bypassed_layers=dict(self.bypassed))

    def record(self, max_bytes: int) -> Recorder:
        """From now on, keep the router logits of forwards in which rows may be remapped, until `recorder` is None.

        Nothing is kept of steps that torch.compile runs.
        """
        self.recorder = Recorder(dict(enumerate(self.layers)), max_bytes)
        return self.recorder

    def reset_stats(self) -> None:
        """Starts all counts at zero."""
        self._counters.reset()

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around the decoder's forward: a step."""
        self._step = self._rows_of(dict(zip(self._names, args, strict=False)) | kwargs)
        self._counters.begin_step(self._step)
        try:
            output = original(*args, **kwargs)
        finally:
            self._step = None
        if not torch.compiler.is_compiling():
            self._note_unasked()
        return output

    def _rows_of(self, inputs: dict[str, Any]) -> StepRows:
        prepared, self._generation.pending = self._generation.pending, None
        tokens = inputs.get("input_ids")
        size = (inputs["inputs_embeds"] if tokens is None else tokens).shape[:2]
        if self.rows is not None:
            return given(self.rows, size[0] * size[1])
        if prepared is not None:
            return prepared
        if inputs.get("cu_seq_lens_q") is not None:
            self._warn("sequences packed into one row keep the model's own routing; say by run.rows which may change")
            return StepRows(num_rows=size[0] * size[1], acts=False)
        return of_forward(self._phase, size, past_length(cache_in(inputs.values())), inputs.get("attention_mask"))

    def _around(self, number: int, one: Found) -> Callable[..., Any]:
        """Around what picks the experts of one layer."""
        layer, picker, layout, policy = self.layers[number], one.picker, one.row.layout, self._by_layer[number]

        def pick(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            step, compiling = self._step, torch.compiler.is_compiling()
            if not compiling:
                self._asked.add(number)
                if step is None:
                    self._warn(f"layer {layer.name} ran outside its decoder's forward: it kept the model's own routing")
            if step is None or not step.acts or (step.num_rows == 1 and not policy.acts_alone):
                return output
            try:
                logits_TE, weights_TK, ids_TK = (part.detach() for part in layout.read(picker, args, output))
            except (IndexError, TypeError, ValueError) as error:
                raise ValueError(f"layer {layer.name}: {error}; leave it out by layers=") from error
            _check_rows(layer, step, logits_TE, ids_TK)
            own = final = Routing(ids_TK.long(), weights_TK.float())
            with torch.no_grad():
                if self.recorder is not None and not compiling:
                    self.recorder.add(number, logits_TE, own, step.masks)
                if not policy.is_identity:
                    decide = policy.route if compiling else policy.decide
                    final = decide(logits_TE, layer.spec, step.masks, own)
                self._counters.add(number, own, final, layer.spec.num_experts, step.valid)
                if self.watch is not None and not compiling:
                    self.watch(layer, own, final)
            return output if final is own else layout.write(output, Choice(logits_TE, final.weights, final.ids))

        return pick

    def _note_unasked(self) -> None:
        for number in set(range(len(self.layers))) - self._asked:
            name, reason = self.layers[number].name, "its router was not asked (does a fused kernel route by itself?)"
            self.bypassed[name] = reason
            self._warn(f"layer {name} keeps the model's own routing: {reason}")
        self._asked.clear()

    def _warn_of_copies(self) -> None:
        if getattr(self._decoder.config, "_experts_implementation", None) == "batched_mm":
            self._warn(
                "the experts run as 'batched_mm', which copies the weights of every token's experts: fewer distinct "
                "experts save no time there. Use model.set_experts_implementation('eager'); on a GPU, generate() "
                "replaces 'grouped_mm' by 'batched_mm' for decoding"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned and not torch.compiler.is_compiling():
            self._warned.add(message)
            warnings.warn(f"lynx_moe: {message}", stacklevel=3)


def _on_ranks(layer: Layer, ranks: int, device: torch.device) -> Layer:
    return replace(layer, placement=Placement.linear(layer.spec.num_experts, ranks, device))


def _check_rows(layer: Layer, step: StepRows, logits_TE: torch.Tensor, ids_TK: torch.Tensor) -> None:
    shapes = (step.num_rows, layer.spec.num_experts), (step.num_rows, layer.spec.top_k)
    if (logits_TE.shape, ids_TK.shape) != shapes:
        raise ValueError(
            f"layer {layer.name} routes logits {tuple(logits_TE.shape)} to ids {tuple(ids_TK.shape)}, expected "
            f"{shapes[0]} and {shapes[1]}: it sees other rows than the decoder got, or its router returns something "
            "else than in transformers 5.17 to 5.24; leave it out by layers="
        )
