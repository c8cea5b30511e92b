"""Where the plugin meets vLLM's model building and model runners."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import vllm.model_executor.layers.fused_moe.layer as moe_layer
from vllm.logger import init_logger

from lynx_moe.engines.shared.layers import Bypass, Layer, built_shape, without_kernel
from lynx_moe.engines.shared.options import KEY
from lynx_moe.engines.shared.refusals import refusing
from lynx_moe.engines.shared.step.rows import EXACT_ROW
from lynx_moe.engines.shared.tell.log import log_line
from lynx_moe.engines.shared.wrap import wrap
from lynx_moe.engines.vllm.front import worker
from lynx_moe.engines.vllm.launch import acting, goals, ranks, twice
from lynx_moe.engines.vllm.launch.options import Options, has_graphs
from lynx_moe.engines.vllm.model import agreement, forward, lora, paging, reached, together
from lynx_moe.engines.vllm.model.forward import PLAN, plan_of
from lynx_moe.engines.vllm.model.placement import placement_of
from lynx_moe.engines.vllm.model.router import LynxRouter
from lynx_moe.engines.vllm.model.specs import spec_of
from lynx_moe.engines.vllm.step.built import configured_shape
from lynx_moe.engines.vllm.step.plan import Plan, activate
from lynx_moe.engines.vllm.step.rows import drafts_of, from_v1_runner, from_v2_batch, take_up
from lynx_moe.engines.vllm.tell import exporter

logger = init_logger(f"vllm.{KEY}")  # vLLM configures handlers for its own name only


class Building:
    """The model under construction: the plan, and what the factory made for it so far."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.reasons: dict[int, str] = {}  # id of a router that is left alone -> why


_building: list[Building] = []


def build(make_model: Callable[[], Any], vllm_config: Any, options: Options) -> Any:
    """Builds a model whose MoE layers route through a plan. Raises ValueError, before any weight is loaded, if none of
    its layers can or the policy does not fit. A model inside the model (vision-language) shares the outer one's plan.
    """
    if _building:
        return make_model()
    install(vllm_config)
    with refusing():
        worker.extend(vllm_config.parallel_config.worker_extension_cls)
        shadow = twice.share(vllm_config, options.shadow, bounded=bool(options.twice))
        place = agreement.check(vllm_config, options, shadow)
        num_drafts = getattr(vllm_config.speculative_config, "num_speculative_tokens", None) or 0
        plan = Plan(options=options, num_drafts=num_drafts, shadow=shadow, **of_model(vllm_config))
        plan.unable = goals.unable(vllm_config, shadow)
    with paging.building(options, vllm_config) as plan.paged:
        model = make_for(plan, make_model)
    with refusing():
        reached.refuse_without_layers(plan, vllm_config)
        paging.fit(plan.paged, model)
        _refuse_adapters(model, vllm_config)
        plan.seal()
    setattr(model, PLAN, plan)
    activate(plan)
    exporter.start(plan, model, vllm_config, place)
    for reason in without_kernel(plan.layers, plan.by_layer, plan.device):
        logger.warning("%s: decisions in plain torch, many times slower than the GPU kernels: %s", KEY, reason)
    logger.info(
        "%s: policy %s on %d MoE layers of %s", KEY, plan.named, len(plan.layers), vllm_config.model_config.model
    )
    if told := acting.text(options.act_from, options.act_to):
        logger.info("%s: %s", KEY, told)
    return model


def of_model(vllm_config: Any, model_config: Any = None) -> dict[str, Any]:
    """What a plan is told of the model that is about to be built; model_config None: the engine's own."""
    return {
        "shape": configured_shape(model_config or vllm_config.model_config),
        "max_rows": vllm_config.scheduler_config.max_num_batched_tokens,
        "device": torch.empty(0).device,  # models are built under their target device
        "graphs": has_graphs(vllm_config),
        "meets": ranks.meet(vllm_config),
    }


def make_for(plan: Plan, make_model: Callable[[], Any]) -> Any:
    """The model, whose layers the plan then knows."""
    building = Building(plan)
    _building.append(building)
    try:
        model = make_model()
    finally:
        _building.clear()
    with refusing():
        _name_layers(model, building)
        plan.shape = built_shape(plan.shape, plan.layers)
    return model


def install(vllm_config: Any) -> None:
    """Wraps the router factory and the model runner that this configuration uses."""
    wrap(moe_layer, "create_fused_moe_router", _create_router)
    if vllm_config.use_v2_model_runner:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2

        wrap(RunnerV2, "prepare_inputs", _prepare_inputs_v2)
        wrap(RunnerV2, "_dummy_run", _dummy_run)
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner as RunnerV1

        wrap(RunnerV1, "_prepare_inputs", _prepare_inputs_v1)
        for name, around in forward.AROUND.items():
            wrap(RunnerV1, name, around)
        wrap(RunnerV1, "_dummy_run", _dummy_run)
    if ranks.meet(vllm_config) and ranks.settle():
        import vllm.v1.worker.dp_utils as dp_utils

        wrap(dp_utils, ranks.TELL, together.settle)


def _create_router(original: Callable[..., Any], **kwargs: Any) -> Any:
    inner = original(**kwargs)
    if not _building:
        return inner
    building = _building[0]
    try:
        spec = spec_of(inner, kwargs.get("num_logical_experts") or kwargs["global_num_experts"])
    except Bypass as bypass:
        building.reasons[id(inner)] = str(bypass)
        return inner
    building.plan.layers.append(Layer(name="", spec=spec))
    return LynxRouter(inner, len(building.plan.layers) - 1, drafts=building.plan.drafts)


def _name_layers(model: Any, building: Building) -> None:
    """Gives the plan vLLM's layer names, and warns of every layer that the policy does not reach."""
    plan = building.plan
    for module in reached.moe_layers(model):
        router, name = module.router, module.layer_name
        if not isinstance(router, LynxRouter):
            reached.bypass(
                plan, name, building.reasons.get(id(router), f"the model brings its own {type(router).__name__}")
            )
            continue
        placement, here_E = placement_of(module, plan.device)
        spec = plan.layers[router.layer].spec
        plan.layers[router.layer] = Layer(name=name, spec=spec, placement=placement, here_E=here_E)
        plan.runners[router.layer] = weakref.ref(module)
        if router.bias_vl is not None:
            module.router = router.unwrap()
            reached.bypass(plan, name, "image tokens have a selection bias of their own")
    reached.note_monolithic(plan, model)


def _refuse_adapters(model: Any, vllm_config: Any) -> None:
    reason = lora.refusal(reached.moe_layers(model), vllm_config)
    if reason is not None:
        raise ValueError(f"{KEY}: {reason}")


def _prepare_inputs_v1(original: Callable[..., Any], runner: Any, scheduler_output: Any, scheduled: Any) -> Any:
    result = original(runner, scheduler_output, scheduled)
    _begin_step(runner, scheduler_output, lambda: from_v1_runner(runner, scheduled), runner.input_batch.req_ids)
    forward.sampled_from(runner, result[0])
    return result


def _prepare_inputs_v2(
    original: Callable[..., Any], runner: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    batch = original(runner, scheduler_output, *args, **kwargs)
    _begin_step(runner, scheduler_output, lambda: from_v2_batch(batch), batch.req_ids)
    return batch


def _begin_step(
    runner: Any, scheduler_output: Any, requests: Callable[[], tuple[np.ndarray, np.ndarray]], req_ids: list[str]
) -> None:
    plan = plan_of(runner)
    if plan is None:
        return
    reached.note_loaded(plan, runner.get_model())
    plan.hear(scheduler_output if plan.attached is None else plan.attached)
    plan.attached = None
    take_up(plan.requests, scheduler_output)
    past_prompt_R, scheduled_R = requests()
    drafts_R = drafts_of(scheduler_output, req_ids)
    plan.begin_batch(past_prompt_R, scheduled_R, drafts_R, req_ids)
    choice_R = plan.requests.choices(req_ids)
    plan.rows.fill(past_prompt_R, scheduled_R, choice_R, plan.requests.asked, drafts_R, plan.verified.chances)
    plan.begin_step()
    together.ask(plan)
    if plan.drafter is not None:
        exact_R = np.zeros_like(past_prompt_R) if choice_R is None else choice_R == EXACT_ROW
        plan.drafter.follow(past_prompt_R, scheduled_R, drafts_R, exact_R, _extra_rows(runner))
    line = log_line(plan)
    if line:
        logger.info(line)


def _extra_rows(runner: Any) -> int:
    """How many more rows than the target's a request has in its drafter's first pass: of V1's runner, and of V2's."""
    for drafter, count in (("drafter", "net_num_new_slots_per_request"), ("speculator", "num_extra_query_per_req")):
        found = getattr(getattr(runner, drafter, None), count, None)
        if found is not None:
            return int(found)
    return 0


def _dummy_run(original: Callable[..., Any], runner: Any, *args: Any, **kwargs: Any) -> Any:
    plan = plan_of(runner)
    if plan is None:
        return original(runner, *args, **kwargs)
    reached.note_loaded(plan, runner.get_model())
    plan.rows.idle()
    plan.requests.step = []
    plan.begin_step()
    together.ask(plan)
    if plan.drafter is not None:
        plan.drafter.idle()
    with together.repeating(runner, plan):
        return original(runner, *args, **kwargs)
