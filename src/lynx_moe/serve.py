"""`lynx-moe serve`: `vllm serve` with the plugin configured, after the checks that need no engine.

What is wrong with the command is said in one line before anything is loaded; the plugin checks the rest, by the model
that vLLM builds, before weights load.
"""

import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lynx_moe.calibration import artifact
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec

KEY = "lynx_moe"
ALLOWED = "VLLM_PLUGINS"
ENDPOINTS = "vllm.endpoint_plugins"
LOADED = tuple(f"vllm.{kind}_plugins" for kind in ("general", "io_processor", "platform", "stat_logger"))
TOP_K_NAMES = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k_experts")


def serve(model: str, policy: str, args: Sequence[str]) -> None:
    """Replaces this process by `vllm serve MODEL ARGS` with the policy in its additional config.

    Raises ValueError if vLLM is not installed, the model folder has no config or no experts, the policy does not fit
    it, --additional-config is no JSON object, VLLM_PLUGINS leaves the plugin out, or the port is taken.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed here; install vllm, or on a machine without GPU, in a clone of "
            "lynx-moe: pip install '.[cpu]'"
        )
    check_model(model, policy)
    check_port(option(args, "--host") or "", int(option(args, "--port") or 8000))
    command = [sys.executable, "-m", "lynx_moe.engines.vllm.launch.command", "serve", model, *with_policy(args, policy)]
    os.execve(sys.executable, command, {**os.environ, ALLOWED: allowed_plugins(os.environ.get(ALLOWED))})


def allowed_plugins(given: str | None) -> str:
    """VLLM_PLUGINS such that vLLM also loads our endpoint, which it does by name only. Not given means all plug-ins but
    endpoints, so these are listed. Raises ValueError if what is given leaves us out, or if the list would let in an
    endpoint that nobody asked for."""
    if given is not None:
        if KEY not in given.split(","):
            raise ValueError(f"{ALLOWED}={given} leaves {KEY} out; add it, or unset the variable")
        return given
    names = {point.name for group in LOADED for point in metadata.entry_points(group=group)} | {KEY}
    others = sorted({point.name for point in metadata.entry_points(group=ENDPOINTS)} & names - {KEY})
    if others:
        raise ValueError(f"set {ALLOWED} yourself: the plug-ins {', '.join(others)} would open endpoints of their own")
    return ",".join(sorted(names))


def with_policy(args: Sequence[str], policy: str) -> list[str]:
    """The arguments with the policy merged into --additional-config."""
    given = option(args, "--additional-config")
    try:
        config = json.loads(given or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"--additional-config {given!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"--additional-config {given!r} must be a JSON object, such as '{{\"key\": 1}}'")
    if "policy" in config.setdefault(KEY, {}):
        raise ValueError(f"--additional-config already names a policy under {KEY!r}; use --policy alone")
    config[KEY]["policy"] = policy
    return [*_without(args, "--additional-config"), "--additional-config", json.dumps(config)]


def option(args: Sequence[str], name: str) -> str | None:
    """The value of `name VALUE` or `name=VALUE`, the last one given."""
    value = None
    for place, arg in enumerate(args):
        if arg == name and place + 1 < len(args):
            value = args[place + 1]
        elif arg.startswith(name + "="):
            value = arg.partition("=")[2]
    return value


def check_model(model: str, policy: str) -> None:
    """Raises ValueError if a local model folder is none, is dense, or the policy does not fit its router; also if the
    policy's calibration file is none."""
    made = make_policy(policy)
    if made.calibration_file is not None:
        artifact.load(made.calibration_file)
    folder = Path(model).expanduser()
    if not folder.exists():
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
            return  # a hub name: vLLM finds it or says why not
        raise ValueError(f"model folder {model} does not exist; give a folder with a config.json, or a hub name")
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{model} holds no readable config.json: {error}") from None
    counts = [
        value for key, value in _numbers(config) if "expert" in key and "per_tok" not in key and "shared" not in key
    ]
    if max(counts, default=0) < 2:
        kind = config.get("model_type", "unknown type")
        raise ValueError(f"{model} ({kind}) is a dense model: it has no experts to choose from; use plain `vllm serve`")
    top_k = next((value for key, value in _numbers(config) if key in TOP_K_NAMES), None)
    if top_k is not None:
        made.check(RouterSpec(num_experts=max(counts), top_k=top_k))


def check_port(host: str, port: int) -> None:
    """Raises ValueError if somebody listens on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from None


def _without(args: Sequence[str], name: str) -> Iterator[str]:
    skip = False
    for arg in args:
        if skip or arg.startswith(name + "="):
            skip = False
        elif arg == name:
            skip = True
        else:
            yield arg


def _numbers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Every integer of a config and its nested parts, with its key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value
