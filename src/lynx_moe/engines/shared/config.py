"""What a model's config.json says of its experts. Only what is certain is refused: engines ask the model they built.

Files differ in where and how they say it: at the top, in `text_config` or `ffn_config`, in a list `block_configs`, as a
number or as a list of one number per modality or layer.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lynx_moe.policies import Policy
from lynx_moe.routing import RouterSpec

EXPERTS = (
    "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts", "n_experts",
    "num_moe_experts",
)  # fmt: skip
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k_experts")
IDENTITIES = "zero_expert_num"  # experts that a router may choose and that do nothing
NAMES = ("model_type", "architectures", "_name_or_path")
PATTERN = "hybrid_override_pattern"  # of Nemotron-H: M, * and - for layers without experts, E for those with

A_PATH = r"([/~]|\.\.?/).*|[\w.-]+(/[\w.-]+){2,}"  # neither a hub name, nor an address such as s3://, nor org/model@tag

Config = Mapping[str, Any]
Router = tuple[int, int | None]  # experts, and experts per token where that is said


def folder_of(model: str) -> Path | None:
    """The folder (or file) that `model` names; None where it lies elsewhere, for an engine to find. Raises ValueError
    for a path that leads nowhere; without a hub also for a name beside folders of models."""
    folder = Path(model).expanduser()
    if folder.exists():
        return folder
    if re.fullmatch(A_PATH, model):
        raise ValueError(f"model folder {model} does not exist; give a folder with a config.json, or a hub name")
    beside = sorted(config.parent.name for config in folder.parent.glob("*/config.json")) if "/" in model else []
    if beside and _is_offline() and not _is_cached(model):
        raise ValueError(
            f"model {model} does not exist: {folder.parent} has {', '.join(beside)}, and HF_HUB_OFFLINE keeps hubs away"
        )
    return None


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _is_cached(model: str) -> bool:
    """Whether the hub's cache on this machine has it, or nobody can tell."""
    try:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except (ImportError, ValueError):
        return True


def read(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises ValueError if it is not readable."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no readable config.json: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder} holds no readable config.json: it is no JSON object")
    return config


def overridden(config: Config, overrides: Config) -> dict[str, Any]:
    """The config with `--hf-overrides` applied: key by key, also within its parts."""
    parts = {
        key: overridden(config[key], value)
        for key, value in overrides.items()
        if isinstance(value, Mapping) and isinstance(config.get(key), Mapping)
    }
    return {**config, **overrides, **parts}


def routers(config: Config, above: tuple[int, ...] = ()) -> Iterator[Router]:
    """Every pair of experts and experts per token that a part of the config names; the latter may stand above it."""
    top_k = tuple(number for name in TOP_K for number in _numbers(config.get(name))) or above
    identities = max(_numbers(config.get(IDENTITIES)), default=0)
    counts = {number for name in EXPERTS for number in _numbers(config.get(name)) if number > 1}
    for number in sorted(counts | {number + identities for number in counts}):
        yield from ((number, k) for k in top_k or (None,))
    for part in _parts(config):
        yield from routers(part, top_k)


def is_dense(config: Config) -> bool:
    """Whether the model certainly has no experts: none or one by every name known, or nothing that speaks of any, also
    not among what its type has where the file is silent."""
    pattern = config.get(PATTERN)
    if isinstance(pattern, str) and config.get("model_type") == "nemotron_h":
        return "E" not in pattern
    if any(routers(config)):
        return False
    spoken = dict(_spoken(config))
    if any(spoken.values()):
        return any(name in EXPERTS for name in spoken)
    return bool(spoken) or not any(routers(_defaults(config.get("model_type"))))


def check(config: Config, policy: Policy, model: str) -> None:
    """Raises ValueError if the model is certainly dense, or the policy fits none of the routers that it may have."""
    if is_dense(config):
        kind = config.get("model_type", "unknown type")
        raise ValueError(f"{model} ({kind}) is a dense model: it has no experts to choose from; use plain `vllm serve`")
    reasons = []
    for num_experts, top_k in routers(config):
        if top_k is None:
            return
        try:
            policy.check(RouterSpec(num_experts=num_experts, top_k=top_k))
        except ValueError as error:
            reasons.append(error)
        else:
            return
    if reasons:
        raise reasons[0]


def _spoken(config: Config) -> Iterator[tuple[str, Any]]:
    """What the config says with "expert" or "moe" in its name."""
    yield from ((key, value) for key, value in config.items() if _about_experts(key) and key not in NAMES)
    for part in _parts(config):
        yield from _spoken(part)


def _about_experts(key: str) -> bool:
    return "expert" in key or "moe" in key.split("_")


def _parts(config: Config) -> Iterator[Config]:
    for value in config.values():
        yield from (part for part in (value if isinstance(value, list) else [value]) if isinstance(part, Mapping))


def _defaults(model_type: Any) -> Config:
    """What transformers says of a model type where a file says nothing; nothing for a type that it does not know."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        defaults: dict[str, Any] = CONFIG_MAPPING[model_type]().to_dict()
    except (ImportError, KeyError, TypeError, ValueError):
        return {}
    return defaults


def _numbers(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(number for number in values if isinstance(number, int) and not isinstance(number, bool))
