"""The entry point `sglang.srt.plugins: lynx_moe`. SGLang calls `register` in every process, before any engine exists.

Without the environment variable LYNX_MOE_SGLANG it does nothing. With it, it hooks into:

    ServerArgs.check_server_args            refuses bad options and arguments, in the process that was started
    loader._initialize_model                makes the plan: the model is there, its weights are not -> hooks.build
    ModelRunner.forward                     writes the masks of the step -> hooks.begin
    topk._post_process_topk_ids             every MoE layer's choice passes here -> hooks.change
    topk.precomputed_topk_postprocess_is_noop   fused gates, which would pass it by, are not taken
    Scheduler._add_request_to_queue         refuses bad wishes -> admission.py
    UnifiedRadixCache.checkpoint            what may be shared -> cache.py
    Scheduler.get_internal_state, set_internal_state   the policy is told and switched -> control.py
    add_prometheus_middleware, Scheduler.get_init_info   metrics, and the routes of endpoint.py -> metrics.py

SGLang goes on without a plug-in that raises here, so what is wrong is said where it checks its arguments.
"""

import os
from collections.abc import Callable
from typing import Any

from lynx_moe.engines.sglang.launch import arguments, versions
from lynx_moe.engines.sglang.launch.options import VARIABLE, Options
from lynx_moe.engines.shared import refusals
from lynx_moe.engines.shared.tell import collector

CHECK = "sglang.srt.server_args.ServerArgs.check_server_args"
TOPK = "sglang.srt.layers.moe.topk"
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"


def register() -> None:
    """Registers the hooks, which SGLang applies."""
    if VARIABLE not in os.environ:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(CHECK, check_server_args, HookType.AROUND)
    if _refusal(None) is not None:
        return
    from lynx_moe.engines.sglang.front import admission, control, metrics
    from lynx_moe.engines.sglang.model import hooks
    from lynx_moe.engines.sglang.step import cache

    before: dict[str, Callable[..., Any]] = {
        "sglang.srt.model_executor.model_runner.ModelRunner.forward": hooks.begin,
        f"{TOPK}.select_experts": hooks.choose,
        f"{TOPK}._post_process_topk_ids": hooks.change,
        "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache.checkpoint": cache.checkpoint,
        f"{SCHEDULER}._add_request_to_queue": admission.arrive,
        f"{SCHEDULER}.get_init_info": metrics.start,
    }
    around: dict[str, Callable[..., Any]] = {
        "sglang.srt.model_loader.loader._initialize_model": hooks.build,
        f"{TOPK}.precomputed_topk_postprocess_is_noop": hooks.never,
        f"{SCHEDULER}.get_internal_state": control.get_internal_state,
        f"{SCHEDULER}.set_internal_state": control.set_internal_state,
        "sglang.srt.utils.common.add_prometheus_middleware": metrics.add_prometheus_middleware,
    }
    collector.place()
    for target, hook in before.items():
        HookRegistry.register(target, hook, HookType.BEFORE)
    for target, hook in around.items():
        HookRegistry.register(target, hook, HookType.AROUND)


def check_server_args(original: Callable[..., Any], server_args: Any) -> Any:
    """Around ServerArgs.check_server_args, when the arguments are resolved. Raises ValueError."""
    result = original(server_args)
    from sglang.srt.arg_groups.overrides import resolving_view

    reason = _refusal(resolving_view(server_args))
    if reason is not None:
        raise refusals.Refusal(reason)
    refusals.expect()
    return result


def _refusal(args: Any) -> str | None:
    """Why SGLang, its arguments (None: they are not known yet) or our options cannot be served with."""
    try:
        options = Options.asked()
    except ValueError as error:
        return str(error)
    return versions.refusal() or (None if args is None or options is None else arguments.refusal(args, options.verify))
