"""Where the plug-in meets SGLang's model: while it is built, before each of its passes, and in each of its routers."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from lynx_moe.engines.sglang.launch.options import Options
from lynx_moe.engines.sglang.launch.versions import is_draft
from lynx_moe.engines.sglang.model.specs import passes_by, spec_of
from lynx_moe.engines.sglang.step.plan import Plan, activate, active
from lynx_moe.engines.shared.layers import Bypass, Layer, built_shape, without_kernel
from lynx_moe.engines.shared.options import KEY, REMAP
from lynx_moe.engines.shared.refusals import refusing
from lynx_moe.engines.shared.tell.log import log_line
from lynx_moe.policies import ONE_RANK, ModelShape, Placement
from lynx_moe.routing import Routing

SMALLEST = 16384  # rows that a plan has room for, at the least; a larger step is a prompt's
logger = logging.getLogger(f"sglang.{KEY}")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def build(original: Callable[..., Any], model_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Around `_initialize_model`: the model is there, its weights are not. Raises ValueError if none of its layers can
    be remapped, or the policy does not fit."""
    model = original(model_config, *args, **kwargs)
    options = Options.asked()
    if options is None or getattr(model_config, "is_draft_model", False):
        return model
    with refusing():
        resolved = _arguments()
        device = torch.empty(0).device  # models are built under their target device
        drafting = resolved["speculative_algorithm"]
        kinds = {"graphs": _has_graphs(resolved), "speculates": drafting is not None}
        plan = Plan(options, _shape(model_config), _most_rows(resolved), device, **kinds)
        _take_layers(plan, model, _placement(resolved))
        if set(plan.bypassed) >= {layer.name for layer in plan.layers}:
            raise ValueError(_without_layers(plan, model_config))
        plan.shape = built_shape(plan.shape, plan.layers)
        plan.seal()
    activate(plan)
    for reason in without_kernel(plan.layers, plan.by_layer, plan.device):
        logger.warning("%s: decisions in plain torch, many times slower than the GPU kernels: %s", KEY, reason)
    if drafting is not None and not plan.policy.is_identity and not options.remaps_drafts:
        logger.warning("%s: %s", KEY, _without_effect(drafting, plan.named))
    logger.info("%s: policy %s on %d MoE layers of %s", KEY, plan.named, len(plan.layers), plan.shape.name)
    return model


def begin(runner: Any, forward_batch: Any, *_: Any, **__: Any) -> None:
    """Before ModelRunner.forward."""
    plan = active()
    if plan is None or runner.is_draft_worker:
        return
    plan.begin(forward_batch)
    line = log_line(plan)
    if line:
        logger.info(line)


def change(*args: Any, **given: Any) -> Arguments | None:
    """Before `_post_process_topk_ids`, which gets the final choice of logical experts: after every rule of the router,
    before SGLang captures what was routed and before a load balancer's mapping. Shared experts' columns stay."""
    plan, layer = active(), _number(given)
    if plan is None or layer is None or torch.compiler.is_compiling():  # what is compiled is prompts
        return None
    logits, ids, weights = given["router_logits"], given["topk_ids"], given["topk_weights"]
    spec = plan.layers[layer].spec
    if logits.shape[-1] != spec.num_experts:
        plan.bypass(plan.layers[layer].name, f"it has {logits.shape[-1]} logits for {spec.num_experts} experts")
        return None
    own = Routing(ids[:, : spec.top_k], weights[:, : spec.top_k].float())
    final = plan.reroute(layer, logits, own)
    if final is None:
        return None
    for name, new, old in (("topk_ids", final.ids, ids), ("topk_weights", final.weights, weights)):
        shared = old[:, spec.top_k :]
        given[name] = torch.cat((new.to(old.dtype), shared), -1) if shared.shape[-1] else new.to(old.dtype)
    return args, given


def choose(*args: Any, **given: Any) -> None:
    """Before `select_experts`: a bias of each token's own is none that a policy could rank by."""
    plan = active()
    config = given.get("topk_config", args[2] if len(args) > 2 else None)
    number = None if plan is None else plan.numbers.get(id(config))
    if plan is not None and number is not None and given.get("dynamic_expert_bias") is not None:
        plan.bypass(plan.layers[number].name, "every token brings a selection bias of its own")


def never(*_: Any, **__: Any) -> bool:
    """In place of `precomputed_topk_postprocess_is_noop`: a fused gate would leave the policy out."""
    return False


def _number(given: dict[str, Any]) -> int | None:
    plan = active()
    if plan is None or "topk_config" not in given:
        return None
    number = plan.numbers.get(id(given["topk_config"]))
    return None if number is None or plan.layers[number].name in plan.bypassed else number


def _take_layers(plan: Plan, model: Any, placement: Placement | None) -> None:
    """Gives the plan the model's routers. Raises ValueError where one passes the policy by as it is configured."""
    from sglang.srt.layers.moe.topk import TopK

    for name, module in model.named_modules():
        if not isinstance(module, TopK) or is_draft(module):
            continue
        block, layer = model.get_submodule(name.rpartition(".")[0]), name.removesuffix(".topk")
        passing = passes_by(module.topk_config)
        if passing is not None:
            raise ValueError(
                f"layer {layer} hands its choice on as {passing}, to kernels that route by themselves; start with "
                "--moe-runner-backend triton"
            )
        try:
            spec = spec_of(module.topk_config, _num_experts(block))
        except Bypass as bypass:
            plan.bypass(layer, str(bypass))
            continue
        plan.numbers[id(module.topk_config)] = len(plan.layers)
        plan.layers.append(Layer(name=layer, spec=spec, placement=placement))


def _num_experts(block: Any) -> int:
    """Of a MoE block: the logical experts, which are the rows of its gate."""
    weight = getattr(getattr(block, "gate", None), "weight", None)
    if weight is None:
        raise Bypass("its block has no gate that says how many experts there are")
    return int(weight.shape[0])


def _without_layers(plan: Plan, model_config: Any) -> str:
    if plan.bypassed:
        return f"no MoE layer of {plan.shape.name} can be remapped: {next(iter(plan.bypassed.values()))}"
    kind = ", ".join(model_config.hf_config.architectures or ())
    return (
        f"{plan.shape.name} ({kind}) has no MoE layer that SGLang routes, so there is nothing to remap; start it "
        "without a policy"
    )


def _without_effect(drafting: str, policy: str) -> str:
    return (
        f"with {drafting} a step that decodes verifies drafts, and rows that verify are exact, so {policy} acts only "
        f"where nothing is drafted; let it act on them by verify={REMAP!r}"
    )


def _shape(model_config: Any) -> ModelShape:
    text = model_config.hf_text_config
    return ModelShape(
        model_type=text.model_type,
        num_layers=model_config.num_hidden_layers,
        num_experts=0,
        top_k=0,
        name=str(model_config.model_path),
    )


def _arguments() -> dict[str, Any]:
    """SGLang's arguments, as they were resolved."""
    from sglang.srt.runtime_context import get_context

    resolved: dict[str, Any] = get_context().resolved_server_args_dict()
    return resolved


def _placement(args: dict[str, Any]) -> Placement | None:
    """All experts are here, or it is not known on which rank each one is."""
    return ONE_RANK if args["ep_size"] == 1 and not args["enable_eplb"] else None


def _most_rows(args: dict[str, Any]) -> int:
    return max(SMALLEST, args["chunked_prefill_size"] or 0, args["max_running_requests"] or 0)


def _has_graphs(args: dict[str, Any]) -> bool:
    """Whether CUDA graphs will record the decode steps."""
    decode = (args.get("cuda_graph_config") or {}).get("decode") or {}
    return args["device"] != "cpu" and not args["disable_cuda_graph"] and decode.get("backend") != "disabled"
