"""An engine in another process that does not start: the refusal that it has told becomes what is raised here."""

from typing import Any

from lynx_moe.engines.shared.refusals import Refusal, heard


def wait_for_engine_startup(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Around what waits for an engine's process, and raises RuntimeError when that ends before it is ready."""
    try:
        return original(*args, **kwargs)
    except RuntimeError:
        reason = heard()
        if reason is None:
            raise
        raise Refusal(reason) from None
