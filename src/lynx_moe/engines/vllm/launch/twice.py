"""Whether an engine can run its model twice on one step's inputs, as shadow steps do, and on which share of steps;
whether its steps are timed."""

import logging
from typing import Any

from lynx_moe.engines.vllm.launch import ranks

DEFAULT = 1 / 256
logger = logging.getLogger("vllm.lynx_moe")


def refusal(vllm_config: Any) -> str | None:
    """Why this engine has no shadow steps; None: it has."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    why = {
        f"{model.architecture} keeps a state (mamba, linear attention or another recurrence) that a second pass would "
        "advance twice": model.has_inner_state or model.is_hybrid,
        f"{model.architecture} has an encoder, whose passes were never run twice": model.is_encoder_decoder,
        "a KV connector may send each layer's KV when it is written, so that of the exact pass too": (
            vllm_config.kv_transfer_config is not None
        ),
        "expert load balancing counts each pass of the router, so every sampled step would weigh more": (
            parallel.enable_eplb
        ),
        f"data_parallel_size={parallel.data_parallel_size} engines meet in every layer, and this vLLM has no "
        f"`dp_utils.{ranks.TELL}` by which they could settle how many passes all of them make": (
            ranks.meet(vllm_config) and not ranks.settle()
        ),
        "Model Runner V2 has no forward pass of its own to repeat (use VLLM_USE_V2_MODEL_RUNNER=0)": (
            vllm_config.use_v2_model_runner
        ),
        "an external launcher shares the logits of the last stage": (
            parallel.distributed_executor_backend == "external_launcher"
        ),
        "this vLLM has no `GPUModelRunner._model_forward`": not _has_forward(),
    }
    return next((reason for reason, found in why.items() if found), None)


def unpaced(vllm_config: Any) -> str | None:
    """Why this engine has no step times that all workers hear; None: it has."""
    if vllm_config.use_v2_model_runner:
        return "slo_tpot_ms is told to all workers by the V1 model runner; use VLLM_USE_V2_MODEL_RUNNER=0"
    return None


def share(vllm_config: Any, asked: float | None, *, bounded: bool) -> float:
    """The share of shadow steps: as asked, or the default where they were run: on a CPU, in an engine that can.
    bounded: a bound on the KL asks for them."""
    from vllm.platforms import current_platform

    if asked is not None:
        return asked
    reason = refusal(vllm_config)
    if reason is None and not bounded and not current_platform.is_cpu():
        reason = "no GPU has run them yet; ask for them by name"
    if reason is not None:
        what = "nothing measures the KL of what is served, and back_off_kl leaves prices as they are"
        logger.warning("lynx_moe: no shadow steps, so %s: %s", what, reason)
        return 0.0
    return DEFAULT


def _has_forward() -> bool:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return hasattr(GPUModelRunner, "_model_forward")
