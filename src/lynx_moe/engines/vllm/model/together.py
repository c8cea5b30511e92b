"""Data-parallel ranks settle, before each forward pass, how often all of them make it.

Their engines wait for each other in every MoE layer, so a pass that one of them makes alone would never end. vLLM's
ranks tell each other how many tokens they have, by one all-reduce before each pass of theirs, that of an idle rank's
dummy batch included (`dp_utils._run_ar`). How many passes a rank asks for rides in it, in bits that the number has to
spare. All make the most that anybody asks for. So nothing more is sent, and a step can be a shadow step of one rank
only if it is one of all. Counting steps instead would need counts that are equal on all ranks, from the start on and
after every pause, and a rank's steps with something to compare come when its requests do.

    execute_model, _dummy_run
      _prepare_inputs, or nothing       the plan says what the step has to compare, and whether it asks for that
      coordinate_batch_across_dp        `settle`
      _model_forward, or the model      the passes (`forward.py`, or `repeating`)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lynx_moe.engines.vllm.launch.ranks import TOKENS
from lynx_moe.engines.vllm.model.forward import from_the_first_layer
from lynx_moe.engines.vllm.step.plan import Plan

PLACE = 24  # bits of a step's number of tokens
_waiting: list[Plan] = []  # the plan whose step has begun, and has not settled its passes yet


def ask(plan: Plan) -> None:
    """A step of this plan begins, and the next all-reduce is about it; later ones are about models that draft."""
    _waiting[:] = [plan] if plan.meets and plan.shadows is not None else []


def settle(original: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """Around dp_utils._run_ar: int32 [4, ranks], of which the first row is the ranks' tokens, and is so again after."""
    shadows = _waiting[0].shadows if _waiting else None
    if shadows is None:
        return original(*args, **given)
    given[TOKENS] += shadows.wish << PLACE
    told = original(*args, **given)
    _waiting.pop().settle(int(told[0].max()) >> PLACE)
    told[0].bitwise_and_((1 << PLACE) - 1)
    return told


@contextmanager
def repeating(runner: Any, plan: Plan) -> Iterator[None]:
    """In here a dummy batch calls the model as often as the other ranks make their passes."""
    if not plan.meets or plan.shadows is None:
        yield
        return
    model = runner.model
    runner.model = _Repeated(model, plan)
    try:
        yield
    finally:
        runner.model = model


class _Repeated:
    """A model in its runner's hands."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan

    def __call__(self, *args: Any, **given: Any) -> Any:
        assert self.plan.shadows is not None
        for trial in self.plan.shadows.trials.values():
            with self.plan.instead(trial):
                self.model(*args, **given)
                from_the_first_layer()
        return self.model(*args, **given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
