"""A step's forward pass, run as often as its shadows ask: around methods of vLLM's V1 model runner.

    execute_model
      _prepare_inputs                        the masks of the step (`hooks.py`), the rows that are sampled from
      sync_and_gather_intermediate_tensors   what the stage before gave for each pass
      _model_forward                         the passes; logits of those that do not stay
    sample_tokens                            what was measured goes with the sampled tokens

A stage hands on what its passes gave beside what stays, so the next one goes on from each of them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.forward_context import get_forward_context

from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.step.shadows.passes import IDLE, LAG, STAYS, Shadows
from lynx_moe.engines.vllm.step.shadows.sample import TIMES, TOLD

PLAN = "lynx_moe_plan"  # attribute of the model
BESIDE = "lynx_moe/"  # before the names of tensors that a stage hands on for a pass that does not stay


def plan_of(runner: Any) -> Plan | None:
    """The plan of a runner's model; None: it has none."""
    found: Plan | None = getattr(runner.get_model(), PLAN, None)
    return found


def sampled_from(runner: Any, indices_N: torch.Tensor) -> None:
    """Of this step: the rows whose hidden states become logits."""
    plan = plan_of(runner)
    if plan is not None and plan.shadows is not None:
        plan.shadows.indices = indices_N


def gather(original: Callable[..., Any], runner: Any, num_tokens: int, tensors: Any, *args: Any, **given: Any) -> Any:
    """Around sync_and_gather_intermediate_tensors, which knows only the names that the model has."""
    shadows = _due(runner)
    if shadows is not None and tensors is not None:
        for name in [name for name in tensors.tensors if name.startswith(BESIDE)]:
            _, trial, own = name.split("/", 2)
            shadows.received.setdefault(trial, {})[own] = tensors.tensors.pop(name)
    return original(runner, num_tokens, tensors, *args, **given)


def forward(original: Callable[..., Any], runner: Any, *args: Any, **given: Any) -> Any:
    """Around _model_forward, whose output stays that of the last pass."""
    shadows = _due(runner)
    if shadows is None:
        return original(runner, *args, **given)
    start, beside = time.perf_counter(), dict[str, torch.Tensor]()
    plan = plan_of(runner)
    assert plan is not None
    for name, trial in shadows.trials.items():
        with _given_back(given), plan.instead(trial):
            for own, tensor in shadows.received.get(name, {}).items():
                into = given["intermediate_tensors"][own]
                into.copy_(tensor[: len(into)])
            output = _timed(shadows, name, original, runner, *args, **given)
            from_the_first_layer()
            if name.startswith(IDLE):
                continue
            if hasattr(output, "tensors"):  # an earlier stage's
                beside |= {f"{BESIDE}{name}/{own}": tensor.clone() for own, tensor in output.tensors.items()}
            else:
                hidden = output[0] if runner.use_aux_hidden_state_outputs else output
                shadows.logits[name] = runner.model.compute_logits(hidden[shadows.indices])
    shadows.seconds = time.perf_counter() - start
    output = _timed(shadows, STAYS, original, runner, *args, **given)
    if beside:
        output.tensors.update(beside)
    return output


def execute(original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **given: Any) -> Any:
    """Around execute_model: the logits of the pass that stays are compared before anything changes them. What is
    attached to the scheduler's output is kept: with n-grams on a GPU the methods below get a copy without it, and a
    step without tokens gets to none of them."""
    plan = plan_of(runner)
    if plan is not None:
        plan.attached = scheduler_output
    output = original(runner, scheduler_output, *args, **given)
    if plan is not None and plan.attached is not None:
        plan.hear(plan.attached)
        plan.attached = None
    shadows, state = _due(runner), runner.execute_model_state
    if shadows is not None and shadows.logits and state is not None and state.logits is not None:
        assert plan is not None
        shadows.compare(state.logits, plan.rows.remap, plan.rows.server, LAG if plan.device.type == "cuda" else 0)
    return output


def sample(original: Callable[..., Any], runner: Any, *args: Any, **given: Any) -> Any:
    """Around sample_tokens, whose output goes to the scheduler."""
    output, plan = original(runner, *args, **given), plan_of(runner)
    if plan is not None:
        told = {TOLD: plan.shadows, TIMES: plan.pace}
        for name, found in ((name, one.told()) for name, one in told.items() if one is not None):
            if found:
                setattr(getattr(output, "_model_runner_output", output), name, found)
    return output


def _timed(shadows: Shadows, name: str, original: Callable[..., Any], *args: Any, **given: Any) -> Any:
    start = time.perf_counter()
    output = original(*args, **given)
    shadows.times[name] = time.perf_counter() - start
    return output


def _due(runner: Any) -> Shadows | None:
    plan = plan_of(runner)
    return plan.shadows if plan is not None and plan.shadows is not None and plan.shadows.trials else None


@contextmanager
def _given_back(given: dict[str, Any]) -> Iterator[None]:
    """Layers may write into what they are given: afterwards it is as before."""
    tensors = [given.get("inputs_embeds"), *getattr(given.get("intermediate_tensors"), "tensors", {}).values()]
    kept = [(tensor, tensor.clone()) for tensor in tensors if isinstance(tensor, torch.Tensor)]
    yield
    for tensor, copy in kept:
        tensor.copy_(copy)


def from_the_first_layer() -> None:
    """Another pass begins: compiled models find each MoE layer by counting them."""
    get_forward_context().moe_layer_index = 0


AROUND: dict[str, Callable[..., Any]] = {
    "sync_and_gather_intermediate_tensors": gather,
    "_model_forward": forward,
    "execute_model": execute,
    "sample_tokens": sample,
}
