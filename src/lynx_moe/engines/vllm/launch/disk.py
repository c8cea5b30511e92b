"""Experts on a disk, or in a host's memory: which engines can."""

from typing import Any

from lynx_moe.engines.vllm.launch import ranks


def refusal(vllm_config: Any) -> str | None:
    """Why this engine's experts cannot lie on a disk; None: they can, as far as is known before it is built."""
    from vllm.platforms import current_platform

    parallel = vllm_config.parallel_config
    reasons = {
        "is for vLLM's CPU engine; on a GPU keep experts in the host's memory by --offload-backend uva "
        "--cpu-offload-gb GIB --cpu-offload-params experts": not current_platform.is_cpu(),
        f"serves from one process, and this engine has {parallel.world_size}; use tensor_parallel_size=1 and "
        "pipeline_parallel_size=1": parallel.world_size > 1,
        f"serves from one engine, and here are {parallel.data_parallel_size}; use data_parallel_size=1": (
            ranks.meet(vllm_config)
        ),
        "cannot be combined with LoRA, whose kernels take all experts; leave out either": vllm_config.lora_config,
        "needs vLLM 0.32, whose CPU kernels pack experts one by one": not _packs_one_by_one(),
    }
    return next((f"experts_resident {reason}" for reason, found in reasons.items() if found), None)


def _packs_one_by_one() -> bool:
    try:
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    except ImportError:
        return False
    ours = hasattr(UnquantizedFusedMoEMethod, "_init_moe_kernel")
    return ours and hasattr(CPUUnquantizedExperts, "process_weights_after_loading")


def warning(vllm_config: Any) -> str | None:
    """What offloading to the host's memory loses by the way that was chosen; None: nothing, or nothing is offloaded."""
    offload = getattr(vllm_config, "offload_config", None)
    if offload is None or offload.offload_backend == "uva":
        return None
    if offload.offload_backend != "prefetch" and not offload.prefetch.offload_group_size:
        return None
    return (
        "--offload-backend prefetch copies all experts of a layer in every step, whichever the step needs: a policy "
        "saves nothing of that; take --offload-backend uva --cpu-offload-gb GIB --cpu-offload-params experts"
    )
