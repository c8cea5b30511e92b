"""Which layers of a model the policy reaches: the others keep vLLM's own routing, each with a warning that says why."""

from typing import Any

from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.vllm.model.placement import gathers_first
from lynx_moe.engines.vllm.model.router import LynxRouter
from lynx_moe.engines.vllm.step.plan import Plan

logger = init_logger(f"vllm.{KEY}")  # vLLM configures handlers for its own name only


def note_loaded(plan: Plan, model: Any) -> None:
    """The weights are there, and with them the kernels: what could not be known before, looked at once."""
    if plan.has_begun:
        return
    plan.has_begun = True
    note_monolithic(plan, model)
    for one in (plan, plan.drafter):
        for module in () if one is None else [runner() for runner in one.runners.values()]:
            if module is not None and isinstance(module.router, LynxRouter) and gathers_first(module):
                module.router = module.router.unwrap()
                method = type(module.routed_experts.quant_method).__name__
                reason = f"{method} gathers the tokens of all data-parallel ranks before it routes"
                bypass(one, module.layer_name, reason)


def note_monolithic(plan: Plan, model: Any) -> None:
    """Kernels that route by themselves never ask a router. Some are chosen only once the weights are there."""
    for module in moe_layers(model):
        if module.is_monolithic:
            bypass(plan, module.layer_name, f"{type(module.routed_experts.quant_method).__name__} routes by itself")


def bypass(plan: Plan, name: str, reason: str) -> None:
    if name not in plan.bypassed:
        plan.bypassed[name] = reason
        logger.warning("%s: layer %s keeps vLLM's own routing: %s", KEY, name, reason)


def moe_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, MoERunner)]


def refuse_without_layers(plan: Plan, vllm_config: Any) -> None:
    reached = {layer.name for layer in plan.layers} - set(plan.bypassed)
    if reached or vllm_config.parallel_config.pipeline_parallel_size > 1:
        return
    model = vllm_config.model_config.model
    if plan.bypassed:
        raise ValueError(f"{KEY}: no MoE layer of {model} can be remapped: {next(iter(plan.bypassed.values()))}")
    raise ValueError(
        f"{KEY}: {model} ({vllm_config.model_config.architecture}) has no MoE layer that vLLM routes, so there is "
        f"nothing to remap; start it without additional_config[{KEY!r}]"
    )
