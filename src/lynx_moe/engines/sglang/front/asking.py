"""The server's side of `control.py`: what its schedulers say of the policy, and a switch of it."""

from typing import Any

from lynx_moe.engines.sglang.front.control import RESET, SWITCH
from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.switching import Switch


class Refused(ValueError):
    """The policy was not switched; nothing was changed."""


async def told(manager: Any) -> dict[str, Any]:
    """What the schedulers of a TokenizerManager say. Raises Refused if they have no policy."""
    states = await manager.get_internal_state()
    if not states or KEY not in states[0]:
        raise Refused(f"the server was started without {KEY}")
    answer: dict[str, Any] = states[0][KEY]
    return answer


async def switch(manager: Any, asked: Switch) -> dict[str, Any]:
    """Switches to a policy; what is told then. Raises Refused, also for goals, which SGLang has none of."""
    if asked.goals:
        raise Refused(f"{', '.join(asked.goals)}: prices that move are known on vLLM only; send a policy alone")
    updated = await _set(manager, f"{SWITCH}{asked.policy}")
    answer = await told(manager)
    if not all(updated):
        raise Refused(answer["refused"] or f"the schedulers did not take {asked.policy!r}")
    return answer


async def reset(manager: Any) -> None:
    """Starts all counts at zero."""
    await _set(manager, RESET)


async def _set(manager: Any, name: str) -> list[bool]:
    from sglang.srt.managers.io_struct import SetInternalStateReq

    updated: list[bool] = await manager.set_internal_state(SetInternalStateReq(server_args={name: 1}))
    return updated
