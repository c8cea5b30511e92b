"""Methods that vLLM's workers gain: `llm.collective_rpc("lynx_stats")` works with the engine in other processes."""

import pkgutil
from collections.abc import Mapping
from typing import Any

from vllm.v1.worker.worker_base import WorkerWrapperBase

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.step.tiers import Recorded
from lynx_moe.engines.shared.switching import Switch
from lynx_moe.engines.vllm.front import control
from lynx_moe.engines.vllm.launch.goals import Unable
from lynx_moe.engines.vllm.step.plan import active


class WorkerExtension:
    """The methods that `extend` adds, beside those of a user's `worker_extension_cls`. Every answer is a list with one
    entry per worker."""

    def lynx_stats(self) -> dict[str, Any]:
        return active().stats().as_dict()

    def lynx_reset_stats(self) -> None:
        active().reset_stats()

    def lynx_set_policy(self, spec: str | None = None, goals: Mapping[str, Any] | None = None) -> str:
        return active().switch(Switch(policy=spec, goals=goals or {}))

    def lynx_set_guard(self, options: dict[str, Any] | None) -> None:
        active().set_guard(None if options is None else GuardOptions.of(options))

    def lynx_guard(self) -> dict[str, Any] | None:
        watch = active().watch
        return None if watch is None else watch.state()

    def lynx_policy(self) -> dict[str, Any]:
        return active().describe()

    def lynx_model(self) -> dict[str, Any]:
        return active().model().told()

    def lynx_check_policy(self, spec: str | None = None, goals: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """{"policy": full spec} if `lynx_set_policy` would succeed, else {"error": reason, "status": HTTP status}."""
        try:
            return {"policy": active().may_switch(Switch(policy=spec, goals=goals or {}))[0].spec}
        except (Recorded, Unable) as error:
            return {"error": str(error), "status": control.CONFLICT}
        except ValueError as error:
            return {"error": str(error), "status": control.BAD}


def extend(qualname: str) -> None:
    """Gives this process's workers the methods, whatever class they are of. `qualname` names the user's own
    `worker_extension_cls`, "" if there is none: vLLM takes one class, so theirs stays as it is, and ours go to what
    vLLM wraps every worker in. Raises ValueError if the user's class has other methods of these names."""
    theirs = pkgutil.resolve_name(qualname) if qualname else object
    methods = {name: method for name, method in vars(WorkerExtension).items() if not name.startswith("_")}
    taken = sorted(name for name, method in methods.items() if getattr(theirs, name, method) is not method)
    if taken:
        raise ValueError(
            f"worker_extension_cls={qualname!r} has methods that this plug-in brings: {', '.join(taken)}; rename them"
        )
    for name, method in methods.items():
        setattr(WorkerWrapperBase, name, method)
