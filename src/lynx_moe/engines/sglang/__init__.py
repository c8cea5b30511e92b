"""SGLang: a plug-in that decides between the router and the expert kernels of every MoE layer.

Inert unless the environment variable LYNX_MOE_SGLANG holds options, such as '{"policy": "priced"}', before the engine
is made. The functions here ask an `sglang.Engine` of this process what its schedulers did, and switch their policy.
"""

from typing import Any

from lynx_moe.engines.sglang.front import asking
from lynx_moe.engines.sglang.front.asking import Refused
from lynx_moe.engines.shared.switching import Switch

__all__ = ["Refused", "describe", "reset_stats", "switch"]


def describe(engine: Any) -> dict[str, Any]:
    """The policy in force, what requests may ask for by name, and under "stats" what the policy did since the last
    reset, as `Stats.as_dict` has it. Raises Refused if the engine has no policy."""
    answer: dict[str, Any] = engine.loop.run_until_complete(asking.told(engine.tokenizer_manager))
    return answer


def switch(engine: Any, spec: str) -> str:
    """Switches the policy from the next step on; returns its full spec string. Raises Refused."""
    return str(engine.loop.run_until_complete(asking.switch(engine.tokenizer_manager, Switch(policy=spec)))["policy"])


def reset_stats(engine: Any) -> None:
    """Starts all counts at zero."""
    engine.loop.run_until_complete(asking.reset(engine.tokenizer_manager))
