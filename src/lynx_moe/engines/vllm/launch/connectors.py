"""Which KV connectors may stand beside remapping, from the sources of vLLM 0.32 and of what its connectors import.

The prefix cache's mark (`cache.py`) is a word in vLLM's block hashes. A connector that finds KV by these hashes keeps
to it, and one that hands on prompts only (all, or those that a request names) need not know of it. One that stores
what requests generate and finds it by a hash of its own would hand KV that was written under remapping to whoever
brings the same tokens as a prompt.
"""

from collections.abc import Iterator
from typing import Any

BY_VLLM_HASHES = ("OffloadingConnector", "SimpleCPUOffloadConnector", "MooncakeStoreConnector")
BY_REQUEST = ("NixlConnector", "NixlPullConnector", "NixlPushConnector", "MooncakeConnector", "MoRIIOConnector")
PROMPTS_ONLY = (
    "LMCacheConnectorV1",  # as `_refusal` lets it in
    "ExampleConnector",
    "ExampleHiddenStatesConnector",  # no KV at all
    "DecodeBenchConnector",  # made-up KV
)
STORE_GENERATED = ("HF3FSKVConnector", "LMCacheMPConnector", "FlexKVConnectorV1")  # whatever their kv_role is
LMCACHE_SWITCH = "lmcache.save_decode_cache"  # goes before LMCache's file and environment
WHY = "KV that was written under remapping would be handed on"

Connector = tuple[str, bool, dict[str, Any], bool]  # name, stores, extra configuration, one of vLLM's own


def refusal(transfer: Any) -> str | None:
    """Why an engine with this `kv_transfer_config` (or None) cannot remap; None: it can."""
    return next((reason for each in _connectors(transfer) if (reason := _refusal(*each))), None)


def unknown(transfer: Any) -> list[str]:
    """The connectors that hand KV on of which nothing is known here."""
    known = (*BY_VLLM_HASHES, *BY_REQUEST, *PROMPTS_ONLY, *STORE_GENERATED)
    return [name for name, stores, _, own in _connectors(transfer) if stores and not (own and name in known)]


def _connectors(transfer: Any) -> Iterator[Connector]:
    if transfer is None or transfer.kv_connector is None:
        return
    extra, stores = transfer.kv_connector_extra_config or {}, transfer.is_kv_producer
    if transfer.kv_connector != "MultiConnector":
        yield transfer.kv_connector, stores, extra, not transfer.kv_connector_module_path
        return
    for child in extra.get("connectors", []):
        role = child.get("kv_role", transfer.kv_role)
        inner = child.get("kv_connector_extra_config") or {}
        yield child.get("kv_connector"), role != "kv_consumer", inner, not child.get("kv_connector_module_path")


def _refusal(name: str, stores: bool, extra: dict[str, Any], own: bool) -> str | None:
    if not own:
        return None
    if name in STORE_GENERATED:
        others = ", ".join((*BY_VLLM_HASHES, *BY_REQUEST))
        return (
            f"kv_connector={name!r} stores what requests generate and finds it by a hash of its own, so {WHY}; "
            f"use one of {others}"
        )
    if name.startswith("Nixl") and extra.get("bidirectional_kv_xfer"):
        return (
            f"bidirectional_kv_xfer of {name} gives what requests generated back to the prefill instance, so {WHY}; "
            "leave it out"
        )
    if name == "LMCacheConnectorV1" and stores and extra.get(LMCACHE_SWITCH) is not False:
        return (
            f"{name} finds KV by a hash of its own, and may store what requests generate, so {WHY}; set "
            f'"{LMCACHE_SWITCH}": false in kv_connector_extra_config, or "kv_role": "kv_consumer"'
        )
    return None
