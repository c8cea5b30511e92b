"""The entry point `vllm.general_plugins: lynx_moe`. vLLM calls `register` in every process, before any engine exists.

register() wraps functions that are already imported by then; the rest follows when a model is built whose
configuration asks for a policy:

    EngineArgs.create_engine_config    refuses bad options in the front-end process
      AsyncLLM, LLMEngine                        refuse bad wishes of requests -> admission.py
      build_app, run_request                     refuse bodies whose wish would be lost -> bodies.py
      EngineCore, its block hashes               what the prefix cache shares -> cache.py
      Scheduler                                  what became of drafts -> verified.py, of shadow steps -> shadows/
      wait_for_engine_startup                    says why an engine did not start -> startup.py
    VllmConfig.compute_hash            leaves our options out of what compiled graphs are found by
    initialize_model                   makes the plan, while the model is built -> hooks.build, drafting.build
      fused_moe.layer.create_fused_moe_router    every MoE layer gets its router from here -> LynxRouter
      UnquantizedFusedMoEMethod                  its experts lie on a disk, if they are to -> paging.py
      the model runner's input preparation       writes the masks of the step
      the model runner's forward pass            runs as often as shadow steps ask -> forward.py
"""

import copy
import functools
import logging
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

from lynx_moe.engines.shared.wrap import wrap

logger = logging.getLogger("vllm.lynx_moe")
RAY_PREFIXES, OURS = "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY", "LYNX_MOE_"
BUILDERS = (
    "vllm.model_executor.model_loader.utils",
    "vllm.model_executor.model_loader.base_loader",
    "vllm.model_executor.model_loader.tensorizer_loader",
    "vllm.model_executor.model_loader.weight_cache.ipc_loader",
)
APPS = (  # modules that have build_app by name
    "vllm.entrypoints.launchers.app",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.openai.api_server",
)
BATCHES = ("vllm.entrypoints.launchers.run_batch", "vllm.entrypoints.openai.run_batch")
BEAM_SEARCH = {
    "vllm.entrypoints.openai.completion.protocol": "CompletionRequest",
    "vllm.entrypoints.openai.chat_completion.protocol": "ChatCompletionRequest",
}


def register() -> None:
    """Idempotent. Without `additional_config["lynx_moe"]` both wrappers hand over to vLLM and do nothing else."""
    import vllm.engine.arg_utils as arg_utils
    import vllm.model_executor.model_loader.utils  # noqa: F401 - must be there to be wrapped

    wrap(arg_utils.EngineArgs, "create_engine_config", _create_engine_config)
    wrap(arg_utils.VllmConfig, "compute_hash", _compute_hash)
    for name in BUILDERS:
        if name in sys.modules:
            wrap(sys.modules[name], "initialize_model", _initialize_model)
    if "vllm.v1.engine.core" in sys.modules:  # an engine core in a process of its own
        _wrap_core()


def _wrap_core() -> None:
    import vllm.v1.core.block_pool as block_pool
    import vllm.v1.core.kv_cache_utils as kv_cache_utils
    import vllm.v1.core.sched.scheduler as scheduler
    import vllm.v1.engine.core as core

    from lynx_moe.engines.vllm.step import cache, verified
    from lynx_moe.engines.vllm.step.shadows import sample

    wrap(core.EngineCore, "add_request", cache.add_request)
    wrap(core.EngineCore, "collective_rpc", cache.collective_rpc)
    wrap(scheduler.Scheduler, "make_spec_decoding_stats", verified.seen)
    wrap(scheduler.Scheduler, "schedule", verified.hand_over)
    wrap(scheduler.Scheduler, "update_from_output", sample.heard)
    for module in (kv_cache_utils, block_pool):
        wrap(module, "generate_block_hash_extra_keys", cache.extra_keys)


def _wrap_front_end() -> None:
    import vllm.v1.engine.async_llm as async_llm
    import vllm.v1.engine.llm_engine as llm_engine
    import vllm.v1.engine.utils as engine_utils

    from lynx_moe.engines.vllm.front import admission, bodies
    from lynx_moe.engines.vllm.launch import startup

    wrap(engine_utils, "wait_for_engine_startup", startup.wait_for_engine_startup)
    wrap(async_llm.AsyncLLM, "get_supported_tasks", admission.get_supported_tasks)
    wrap(async_llm.AsyncLLM, "generate", admission.generate)
    wrap(async_llm.AsyncLLM, "add_request", admission.add_request_async)
    wrap(llm_engine.LLMEngine, "add_request", admission.add_request)
    for name, kind in BEAM_SEARCH.items():
        if name in sys.modules:
            wrap(getattr(sys.modules[name], kind), "to_beam_search_params", admission.to_beam_search_params)
    for names, function, around in (
        (APPS, "build_app", bodies.build_app),
        (BATCHES, "run_request", bodies.run_request),
    ):
        for name in names:
            if hasattr(sys.modules.get(name), function):
                wrap(sys.modules[name], function, around)
    _wrap_core()  # it may come to live in this process


def _create_engine_config(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from lynx_moe.engines.shared import refusals
    from lynx_moe.engines.shared.options import KEY
    from lynx_moe.engines.vllm.launch import disk, speculation, tuned
    from lynx_moe.engines.vllm.launch.options import Options, check_engine

    given = args[0]  # the EngineArgs
    if isinstance(given.additional_config, dict) and KEY in given.additional_config:
        with refusals.refusing():  # before vLLM, which compares sizes only, and says so in several lines
            speculation.check_vocabulary(given.model, given.speculative_config)
    vllm_config = original(*args, **kwargs)

    with refusals.refusing():
        options = Options.of(vllm_config)
        if options is not None:
            check_engine(vllm_config)
            if options.tuned is not None:
                tuned.check(options.tuned, vllm_config.model_config)
                tuned.keep(options.tuned, vllm_config, KEY)
    if options is not None:
        refusals.expect()
        _hand_on()
        _warn_of_connectors(vllm_config.kv_transfer_config)
        if (loss := disk.warning(vllm_config)) is not None:
            logger.warning("lynx_moe: %s", loss)
        _wrap_front_end()
        if options.metrics_every:
            from lynx_moe.engines.vllm.tell import collector

            collector.expose()
    return vllm_config


def _hand_on() -> None:
    """vLLM's Ray executor copies variables of some prefixes to its workers, ours among them from now on."""
    prefixes = os.environ.get(RAY_PREFIXES, "")
    if OURS not in prefixes.split(","):
        os.environ[RAY_PREFIXES] = ",".join(filter(None, (prefixes, OURS)))


def _compute_hash(original: Callable[..., Any], vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Graphs know a layer by its number and nothing of our options but whether experts lie on a disk, and how many do
    not: one compiled graph serves all others."""
    from lynx_moe.engines.shared.options import KEY

    extra = vllm_config.additional_config
    if not isinstance(extra, dict) or KEY not in extra:
        return original(vllm_config, *args, **kwargs)
    seen = copy.copy(vllm_config)
    ours = f"{metadata.version('lynx-moe')}, {extra[KEY].get('experts_resident')} experts resident"
    object.__setattr__(seen, "additional_config", {**extra, KEY: ours})
    return original(seen, *args, **kwargs)


def _warn_of_connectors(transfer: Any) -> None:
    from lynx_moe.engines.vllm.launch.connectors import unknown

    for name in unknown(transfer):
        logger.warning(
            "lynx_moe: nothing is known of the KV connector %s: if it stores what requests generate and does not find "
            "it by vLLM's block hashes, exact requests will read KV that was written under remapping",
            name,
        )


def _initialize_model(original: Callable[..., Any], vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    from lynx_moe.engines.shared import refusals
    from lynx_moe.engines.vllm.launch.options import Options, check_engine

    options = Options.of(vllm_config)
    if options is None:
        return original(vllm_config, *args, **kwargs)
    from lynx_moe.engines.vllm.launch import speculation
    from lynx_moe.engines.vllm.model import drafting, hooks

    with refusals.refusing():
        check_engine(vllm_config)
    make_model = functools.partial(original, vllm_config, *args, **kwargs)
    model_config = kwargs.get("model_config") or vllm_config.model_config
    if speculation.is_drafter(model_config):
        return drafting.build(make_model, vllm_config, options, model_config)
    return hooks.build(make_model, vllm_config, options)
