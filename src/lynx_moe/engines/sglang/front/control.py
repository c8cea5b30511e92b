"""The policy of a running server, told and switched between two steps on every rank.

What reaches SGLang's schedulers from its server is a fixed set of messages. One of them sets numbers by name, another
asks for a dictionary. Names that begin with ours are for us; the server's own are handed on.
"""

from collections.abc import Callable
from typing import Any

from lynx_moe.engines.sglang.step.plan import active
from lynx_moe.engines.shared.options import KEY

SWITCH = f"{KEY}:"  # and the spec
RESET = f"{KEY} reset"


def get_internal_state(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    """Around Scheduler.get_internal_state, whose answer gets a part of ours."""
    answer, plan = original(scheduler, recv_req), active()
    if plan is not None:
        answer.internal_state[KEY] = plan.describe()
    return answer


def set_internal_state(original: Callable[..., Any], scheduler: Any, recv_req: Any) -> Any:
    """Around Scheduler.set_internal_state; why nothing was changed is told by `get_internal_state`."""
    plan = active()
    ours = [name for name in recv_req.server_args if name == RESET or name.startswith(SWITCH)]
    if plan is None or not ours:
        return original(scheduler, recv_req)
    from sglang.srt.managers.io_struct import SetInternalStateReqOutput

    plan.refused = ""
    try:
        for name in ours:
            if name == RESET:
                plan.reset_sums()
            else:
                plan.set_policy(name.removeprefix(SWITCH))
    except ValueError as error:
        plan.refused = str(error)
    return SetInternalStateReqOutput(updated=not plan.refused)
