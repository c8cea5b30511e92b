"""What a policy must know of a model: whether it can act there, on which layers, and where a step begins."""

import inspect
from collections.abc import Callable, Collection
from typing import Any

from lynx_moe.engines.transformers.cache import cache_name
from lynx_moe.engines.transformers.table import Found, find
from lynx_moe.engines.transformers.wrappers import modules_of
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec


def checked(model: Any) -> Any:
    """The model itself, without torch.compile's wrapper. Raises ValueError for what is no transformers model, and for
    models that are split over devices."""
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "named_modules") or not hasattr(getattr(model, "config", None), "get_text_config"):
        raise ValueError(f"apply needs a transformers model, got {type(model).__name__}")
    devices = set(getattr(model, "hf_device_map", {}).values())
    if (getattr(model, "_tp_size", None) or 1) > 1 or len(devices) > 1:
        raise ValueError(
            "the model is split over devices (tensor or expert parallel, or a device_map with several devices), which "
            "is not supported: a policy needs all rows of a step in one place; load the model on one device"
        )
    return model


def layers_of(model: Any, chosen: Collection[int] | None) -> tuple[list[Found], dict[str, str], dict[str, str]]:
    """The MoE layers to remap (`chosen`: their numbers, None: all), those that cannot be (name -> why), and those that
    were not chosen. Raises ValueError if none is left."""
    found, bypassed = find(model)
    name = type(model).__name__
    if not found and bypassed:
        raise ValueError(f"no MoE layer of {name} can be remapped: {next(iter(bypassed.values()))}")
    if not found:
        raise ValueError(_why_none(model))
    if chosen is None:
        return found, bypassed, {}
    wrong = sorted(set(chosen) - set(range(len(found))))
    if wrong or not chosen:
        raise ValueError(
            f"layers={sorted(chosen)}: name some of 0 to {len(found) - 1}, the remappable MoE layers of {name} in "
            "order, or leave layers out for all"
        )
    left = {one.layer.name: "not among layers=" for number, one in enumerate(found) if number not in chosen}
    return [found[number] for number in sorted(set(chosen))], bypassed, left


def _why_none(model: Any) -> str:
    """Why a model has no MoE layer that is known."""
    code = type(getattr(model, "get_base_model", lambda: model)())
    if code.__module__.partition(".")[0] == "transformers":
        return f"{code.__name__} has no MoE layer, so there is nothing to remap: apply needs a mixture-of-experts model"
    return (
        f"{code.__name__} is code that comes with it ({code.__module__}), without a router of transformers' own: "
        "apply knows routers by transformers' classes; serve this model by vLLM, or load it with transformers' own code"
    )


def decoder_of(model: Any, names: Collection[str]) -> Any:
    """The module whose forward is a step: the innermost around all layers that takes tokens, a mask and a cache."""

    def takes_all(module: Any) -> bool:
        taken = set(inspect.signature(module.forward).parameters)
        return {"inputs_embeds", "attention_mask"} <= taken and cache_name(module.forward) is not None

    decoder = _innermost(model, names, takes_all)
    if decoder is None:
        raise ValueError(
            f"{type(model).__name__} is no decoder with a cache; apply needs the whole causal language model"
        )
    return decoder


def generator_of(model: Any, names: Collection[str]) -> Any | None:
    """The module around all layers whose `generate` runs steps, if there is one."""
    return _innermost(model, names, lambda module: hasattr(module, "prepare_inputs_for_generation"))


def shape_of(model: Any, spec: RouterSpec) -> ModelShape:
    config = model.config.get_text_config()
    return ModelShape(
        model_type=config.model_type,
        num_layers=config.num_hidden_layers,
        num_experts=spec.num_experts,
        top_k=spec.top_k,
        name=model.config.name_or_path or type(model).__name__,
    )


def _innermost(model: Any, names: Collection[str], fits: Callable[[Any], bool]) -> Any | None:
    around = None
    for name, module in modules_of(model).items():
        prefix = f"{name}." if name else ""
        if all(inner.startswith(prefix) for inner in names) and fits(module):
            around = module
    return around
