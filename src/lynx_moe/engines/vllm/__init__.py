"""vLLM: a plugin that decides between the router and the expert kernels of every MoE layer.

Inert unless the engine is started with `additional_config={"lynx_moe": {"policy": "priced"}}`. The
functions here reach the engine of this process (VLLM_ENABLE_V1_MULTIPROCESSING=0); elsewhere the same is there as
`llm.collective_rpc("lynx_stats")`, `"lynx_reset_stats"` and `"lynx_policy"`, and as `switch(llm, spec)`.
"""

from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.metrics import LayerStats, Stats, Tally
from lynx_moe.engines.shared.recorder import Recorder
from lynx_moe.engines.shared.switching import Switch
from lynx_moe.engines.vllm.front.control import Refused, switch, switch_async
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.policies import ModelShape

__all__ = [
    "LayerStats",
    "Recorder",
    "Refused",
    "Stats",
    "Tally",
    "guard",
    "record",
    "reset_stats",
    "set_guard",
    "set_policy",
    "shape",
    "stats",
    "stop_recording",
    "switch",
    "switch_async",
]


def stats() -> Stats:
    """What the policy did since the last reset, from the ids that the expert kernels got. Waits for the device."""
    return active().stats()


def reset_stats() -> None:
    """Starts all counts at zero."""
    active().reset_stats()


def record(max_bytes: int) -> Recorder:
    """Keeps the router logits of the steps from now on, up to `max_bytes`; returns what collects them.

    Raises ValueError where CUDA graphs have recorded the policy.
    """
    return active().record(max_bytes)


def stop_recording() -> None:
    """Ends `record`; what was collected stays with its recorder."""
    active().recorder = None


def shape() -> ModelShape:
    """What policies with published settings know the model by."""
    return active().shape


def set_policy(spec: str | None = None, **goals: float | None) -> str:
    """Switches the policy from the next step on, without rebuilding the engine; returns its full spec string. spec
    None: the policy stays. goals: `max_kl`, `slo_tpot_ms`, None to turn one off; those that are not named stay.

    Raises ValueError for a bad spec or goal, for a goal that this engine cannot follow, and where CUDA graphs have
    recorded the policy: start those with `enforce_eager=True`, or build one engine per policy.
    """
    return active().switch(Switch(policy=spec, goals=goals))


def set_guard(options: dict[str, Any] | None) -> None:
    """Guards the policy from the next step on, with the options of `control.options.GuardOptions`; None ends it.

    Raises ValueError for a bad option, and for what CUDA graphs have not recorded.
    """
    active().set_guard(None if options is None else GuardOptions.of(options))


def guard() -> dict[str, Any] | None:
    """Where the guard stands: its rung, figures, samples and changes; None where there is none."""
    watch = active().watch
    return None if watch is None else watch.state()
