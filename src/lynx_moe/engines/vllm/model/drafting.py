"""A model that drafts for the one that is served: built with a plan of its own, and told of each of its passes."""

import sys
from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from lynx_moe.engines.shared.options import DRAFT, KEY
from lynx_moe.engines.shared.refusals import refusing
from lynx_moe.engines.shared.wrap import wrap
from lynx_moe.engines.vllm.launch.options import Options, has_graphs
from lynx_moe.engines.vllm.model import hooks
from lynx_moe.engines.vllm.step.drafter import DrafterPlan
from lynx_moe.engines.vllm.step.plan import active

logger = init_logger(f"vllm.{KEY}")
V2 = "vllm.v1.worker.gpu.spec_decode"
PASSES = (  # modules whose `set_forward_context` stands around each pass of a drafter
    "vllm.v1.spec_decode.llm_base_proposer",
    "vllm.v1.spec_decode.eagle",  # before it got a base
    "vllm.v1.spec_decode.step3p5",
    *(f"{V2}.{kind}.speculator" for kind in ("eagle", "standalone_ar", "target_dependent_ar", "multi_module_mtp")),
)


def build(make_model: Callable[[], Any], vllm_config: Any, options: Options, model_config: Any) -> Any:
    """Builds a model that drafts. Its layers are counted, and keep their own routing unless the server's policy is for
    them; a model without MoE layers is left alone. Raises ValueError, before any weight is loaded, if the policy is for
    layers that there are not, or does not fit one."""
    target = active()
    replayed = has_graphs(vllm_config) and vllm_config.use_v2_model_runner
    with refusing():
        if options.verify == DRAFT and replayed:
            raise ValueError(
                f"verify={DRAFT!r}: Model Runner V2 records a drafter's passes in CUDA graphs, and nothing tells them "
                "apart; use enforce_eager=True, or VLLM_USE_V2_MODEL_RUNNER=0"
            )
        given = hooks.of_model(vllm_config, model_config)
        plan = DrafterPlan(options=options.of_drafter, replayed=replayed, **given)
    model = hooks.make_for(plan, make_model)
    if not {layer.name for layer in plan.layers} - set(plan.bypassed):
        if options.verify == DRAFT:
            with refusing():
                raise ValueError(f"verify={DRAFT!r}: {model_config.model} drafts, and has no MoE layer to remap")
        return model
    for name in PASSES:
        if hasattr(sys.modules.get(name), "set_forward_context"):
            wrap(sys.modules[name], "set_forward_context", _forward)
    with refusing():
        plan.seal()
    target.drafter = plan
    logger.info(
        "%s: policy %s on %d MoE layers of %s, which drafts",
        KEY,
        plan.policy.spec,
        len(plan.layers),
        model_config.model,
    )
    return model


def _forward(original: Callable[..., Any], attn_metadata: Any, vllm_config: Any, *args: Any, **given: Any) -> Any:
    plan = active().drafter
    if plan is not None:
        num_tokens = args[0] if args else given.get("num_tokens")
        plan.begin_pass(num_tokens or 0, real=attn_metadata is not None)
    return original(attn_metadata, vllm_config, *args, **given)
