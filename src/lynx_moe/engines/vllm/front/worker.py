"""Methods that vLLM's workers gain: `llm.collective_rpc("lynx_stats")` works with the engine in other processes."""

from typing import Any

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.vllm.front import control
from lynx_moe.engines.vllm.step.plan import Recorded, active


class WorkerExtension:
    """Set as `worker_extension_cls` unless the user has one. Every answer is a list with one entry per worker."""

    def lynx_stats(self) -> dict[str, Any]:
        return active().stats().as_dict()

    def lynx_reset_stats(self) -> None:
        active().reset_stats()

    def lynx_set_policy(self, spec: str) -> str:
        return active().set_policy(spec)

    def lynx_set_guard(self, options: dict[str, Any] | None) -> None:
        active().set_guard(None if options is None else GuardOptions.of(options))

    def lynx_guard(self) -> dict[str, Any] | None:
        watch = active().watch
        return None if watch is None else watch.state()

    def lynx_policy(self) -> dict[str, Any]:
        return active().describe()

    def lynx_check_policy(self, spec: str) -> dict[str, Any]:
        """{"policy": full spec} if `lynx_set_policy` would succeed, else {"error": reason, "status": HTTP status}."""
        try:
            return {"policy": active().check(spec)[0].spec}
        except ValueError as error:
            return {"error": str(error), "status": control.CONFLICT if isinstance(error, Recorded) else control.BAD}
