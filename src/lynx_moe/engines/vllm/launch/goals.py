"""The goals that move prices, a bound on the KL (`max_kl`) and a latency objective (`slo_tpot_ms`): which engine cannot
follow them, and which a running one may be given."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.switching import GOALS
from lynx_moe.engines.vllm.launch import twice
from lynx_moe.engines.vllm.launch.options import Options


class Unable(ValueError):
    """This engine cannot follow the goal, whatever its value."""


def unable(vllm_config: Any, shadow: float) -> dict[str, str]:
    """Goals that this engine cannot follow, and why. shadow: its share of shadow steps."""
    found = {"max_kl": None if shadow else _unbounded(vllm_config), "slo_tpot_ms": twice.unpaced(vllm_config)}
    return {goal: reason for goal, reason in found.items() if reason is not None}


def _unbounded(vllm_config: Any) -> str:
    reason = twice.refusal(vllm_config)
    if reason is not None:
        return f"max_kl runs the model twice on one step, and {reason}"
    return (
        "max_kl is measured in shadow steps, and this engine was started without them; start it with a share (shadow)"
    )


def check(goals: Mapping[str, Any], options: Options, *, policy: str, guard: GuardOptions | None, tuned: bool) -> None:
    """Raises ValueError for goals that this engine may not be given now: bad values, what the policy or another option
    excludes. options: the engine's at start; policy, guard: those in force; tuned: its tuned settings act."""
    named: dict[str, Any] = {name: value for name, value in goals.items() if value is not None}
    if not named:
        return
    if not tuned:
        named |= {"policy": policy, "tuned": None}
    replace(options, **{"guard": guard, "back_off_kl": None, **dict.fromkeys(GOALS), **named})


def check_guard(guard: GuardOptions, options: Options, goals: Mapping[str, Any], *, tuned: bool) -> None:
    """Raises ValueError where something else moves the policy already. goals: those in force; tuned: as in `check`."""
    replace(options, **{"guard": guard, "back_off_kl": None, "tuned": options.tuned if tuned else None, **goals})


def refuse(goals: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Raises Unable for a goal that is to be followed, and cannot."""
    for name, reason in reasons.items():
        if goals.get(name) is not None:
            raise Unable(f"{KEY}: {reason}")
