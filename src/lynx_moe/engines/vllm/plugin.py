"""The entry point `vllm.general_plugins: lynx_moe`. vLLM calls `register` in every process, before any engine exists.

register() wraps functions that are already imported by then; the rest follows when a model is built whose
configuration asks for a policy:

    EngineArgs.create_engine_config    refuses bad options in the front-end process, adds the worker methods
      AsyncLLM, LLMEngine                        refuse bad wishes of requests -> admission.py
      EngineCore, its block hashes               what the prefix cache shares -> cache.py
    initialize_model                   makes the plan, while the model is built -> hooks.build
      fused_moe.layer.create_fused_moe_router    every MoE layer gets its router from here -> LynxRouter
      the model runner's input preparation       writes the masks of the step
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from lynx_moe.engines.vllm.launch.wrap import wrap

logger = logging.getLogger("vllm.lynx_moe")
WORKER_EXTENSION = "lynx_moe.engines.vllm.front.worker.WorkerExtension"
BUILDERS = (
    "vllm.model_executor.model_loader.utils",
    "vllm.model_executor.model_loader.base_loader",
    "vllm.model_executor.model_loader.tensorizer_loader",
    "vllm.model_executor.model_loader.weight_cache.ipc_loader",
)
BEAM_SEARCH = {
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
}


def register() -> None:
    """Idempotent. Without `additional_config["lynx_moe"]` both wrappers hand over to vLLM and do nothing else."""
    import vllm.engine.arg_utils as arg_utils
    import vllm.model_executor.model_loader.utils  # noqa: F401 - must be there to be wrapped

    wrap(arg_utils.EngineArgs, "create_engine_config", _create_engine_config)
    for name in BUILDERS:
        if name in sys.modules:
            wrap(sys.modules[name], "initialize_model", _initialize_model)
    if "vllm.v1.engine.core" in sys.modules:  # an engine core in a process of its own
        _wrap_core()


def _wrap_core() -> None:
    import vllm.v1.core.block_pool as block_pool
    import vllm.v1.core.kv_cache_utils as kv_cache_utils
    import vllm.v1.engine.core as core

    from lynx_moe.engines.vllm.step import cache

    wrap(core.EngineCore, "add_request", cache.add_request)
    wrap(core.EngineCore, "collective_rpc", cache.collective_rpc)
    for module in (kv_cache_utils, block_pool):
        wrap(module, "generate_block_hash_extra_keys", cache.extra_keys)


def _wrap_front_end() -> None:
    import vllm.v1.engine.async_llm as async_llm
    import vllm.v1.engine.llm_engine as llm_engine

    from lynx_moe.engines.vllm.front import admission

    wrap(async_llm.AsyncLLM, "generate", admission.generate)
    wrap(async_llm.AsyncLLM, "add_request", admission.add_request_async)
    wrap(llm_engine.LLMEngine, "add_request", admission.add_request)
    for name, kind in BEAM_SEARCH.items():
        if name in sys.modules:
            wrap(getattr(sys.modules[name], kind), "to_beam_search_params", admission.to_beam_search_params)
    _wrap_core()  # it may come to live in this process


def _create_engine_config(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    vllm_config = original(*args, **kwargs)
    from lynx_moe.engines.vllm.launch.options import Options, check_engine

    options = Options.of(vllm_config)
    if options is not None:
        check_engine(vllm_config)
        _warn_of_connectors(vllm_config.kv_transfer_config)
        _wrap_front_end()
        if options.metrics_every:
            from lynx_moe.engines.vllm.tell import collector

            collector.expose()
        parallel = vllm_config.parallel_config
        parallel.worker_extension_cls = parallel.worker_extension_cls or WORKER_EXTENSION
    return vllm_config


def _warn_of_connectors(transfer: Any) -> None:
    from lynx_moe.engines.vllm.launch.connectors import unknown

    for name in unknown(transfer):
        logger.warning(
            "lynx_moe: nothing is known of the KV connector %s: if it stores what requests generate and does not find "
            "it by vLLM's block hashes, exact requests will read KV that was written under remapping",
            name,
        )


def _initialize_model(original: Callable[..., Any], vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    from lynx_moe.engines.vllm.launch.options import Options, check_engine

    options = Options.of(vllm_config)
    if options is None:
        return original(vllm_config, *args, **kwargs)
    check_engine(vllm_config)
    from lynx_moe.engines.vllm.model import hooks

    return hooks.build(functools.partial(original, vllm_config, *args, **kwargs), vllm_config, options)
