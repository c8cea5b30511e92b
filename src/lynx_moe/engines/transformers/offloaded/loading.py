"""A transformers model without its experts: all else is loaded, and takes no more memory than itself."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from lynx_moe.engines.disk.checkpoint import BadCheckpoint, Checkpoint


def on_meta(folder: Path) -> Any:
    """The causal language model of a folder's configuration, without memory for its weights. Raises ValueError for
    another kind of model, and for quantised weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(f"{folder} is quantised ({method}): offload reads experts in bfloat16, float16 or float32")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load(meta: Any, checkpoint: Checkpoint, rest: Collection[str], experts: Collection[str], **given: Any) -> Any:
    """The model of `meta`'s kind with the tensors `rest`; the modules `experts` have no parameters. `given` goes to
    transformers' `from_pretrained`. Raises BadCheckpoint where something is missing, and ReadError."""
    from transformers import GenerationConfig

    bare = _without(type(meta), experts)
    tensors = {name: checkpoint.read(name) for name in rest}
    model, info = bare.from_pretrained(
        None,
        config=meta.config,
        state_dict=tensors,
        experts_implementation="eager",
        output_loading_info=True,
        **given,
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise BadCheckpoint(
            f"{checkpoint.folder} lacks {len(missing)} tensors of the model, {missing[0]} the first; fetch it again"
        )
    model.config.name_or_path = model.name_or_path = str(checkpoint.folder)
    if model.can_generate() and (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    return model.requires_grad_(False)


def _without(kind: type, experts: Collection[str]) -> Any:
    """The class, whose objects begin without these modules' parameters. It has its name: transformers looks some things
    up by it."""

    def init(self: Any, config: Any, *args: Any, **given: Any) -> None:
        kind.__init__(self, config, *args, **given)  # type: ignore[misc]
        for name in experts:
            module = self.get_submodule(name)
            module._is_hf_initialized = True  # there is nothing that transformers could fill
            for part, _ in list(module.named_parameters(recurse=False)):
                delattr(module, part)

    def save_pretrained(self: Any, *_: Any, **__: Any) -> None:
        raise ValueError("an offloaded model has no experts to save: copy its folder")

    return type(
        kind.__name__, (kind,), {"__init__": init, "save_pretrained": save_pretrained, "__module__": kind.__module__}
    )
