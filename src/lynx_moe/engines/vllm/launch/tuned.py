"""The file of tuned settings at an engine's start: read, and held against the model that is about to be loaded."""

import json
import logging
import socket
from pathlib import Path
from typing import Any

from lynx_moe.control.tuned import AGAIN, Tuned
from lynx_moe.engines.vllm.launch.versions import experts_per_token

logger = logging.getLogger("vllm.lynx_moe")
NAME = "name"


def read(given: Any) -> Tuned:
    """The settings in a file, or in what it holds. Raises ValueError, naming the file, if it is missing or broken."""
    if not isinstance(given, str):
        try:
            return Tuned.of(given)
        except ValueError as error:
            raise ValueError(f"tuned: {error}") from None
    try:
        return Tuned.of(json.loads(Path(given).expanduser().read_bytes()))
    except OSError as error:
        where = f"cannot be read on {socket.gethostname()} ({error.strerror})"
        raise ValueError(f"tuned={given!r} {where}; {AGAIN}") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"tuned={given!r} is no JSON, so no file of tuned settings; {AGAIN}") from None
    except ValueError as error:
        raise ValueError(f"tuned={given!r}: {error}") from None


def identity(model_config: Any) -> dict[str, Any]:
    """What tells models apart, from vLLM's configuration: a name, and numbers."""
    numbers = {
        "layers": model_config.get_total_num_hidden_layers(),
        "hidden": model_config.get_hidden_size(),
        "experts": model_config.get_num_experts(),
        "top_k": experts_per_token(model_config),
        "vocabulary": model_config.get_vocab_size(),
    }
    return {
        NAME: Path(str(model_config.model)).name,
        "type": model_config.hf_text_config.model_type,
        **numbers,
        "quantization": model_config.quantization,
    }


def keep(options: Tuned, vllm_config: Any, key: str) -> None:
    """Puts what the file holds in place of its name, so that every process has the same settings."""
    extra = vllm_config.additional_config
    own = {**extra[key], "tuned": options.told()}
    object.__setattr__(vllm_config, "additional_config", {**extra, key: own})


def check(tuned: Tuned, model_config: Any) -> None:
    """Raises ValueError if the settings were measured on another model. One of another name may be the same: that is
    only warned of."""
    here = identity(model_config)
    wrong = [
        f"{key} {value!r} instead of {here.get(key)!r}"
        for key, value in tuned.model.items()
        if key != NAME and here.get(key) != value
    ]
    then, now = tuned.model.get(NAME, "another model"), here[NAME]
    if wrong:
        raise ValueError(f"tuned: the settings were measured on {then}, not on {now}: {', '.join(wrong)}; tune {now}")
    if then != now:
        logger.warning("lynx_moe: the tuned settings were measured on %s; if %s has other weights, tune it", then, now)
