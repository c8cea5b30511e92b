"""Which SGLang is supported, and what differs between versions, read in their sources."""

from importlib import metadata
from typing import Any

from lynx_moe.engines.shared.options import KEY

SUPPORTED = ("0.5.22", "0.5.23")  # older ones hand KV to the radix cache in another way (`step/cache.py`)
TESTED = "0.5.23"


def refusal() -> str | None:
    """Why the SGLang that is installed cannot be served with; None: it can."""
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return "SGLang is not installed here; install sglang"
    if ".".join(version.split(".")[:3]) in SUPPORTED:
        return None
    return (
        f"{KEY}: SGLang {version} is not supported; supported: {', '.join(SUPPORTED)} (tested: {TESTED}). Install one "
        "of these, or start it without a policy"
    )


def shared_columns(config: Any) -> int:
    """How many columns of a layer's choice are shared experts, which 0.5.23 has given another name."""
    found = getattr(config, "num_shared_topk_slots", None)
    return int(getattr(config, "num_fused_shared_experts", 0) if found is None else found)


def is_draft(topk: Any) -> bool:
    """Whether a layer belongs to a model that drafts; 0.5.22 does not say."""
    return bool(getattr(topk, "is_draft", False))
