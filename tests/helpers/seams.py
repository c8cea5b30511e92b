"""What the plugins touch inside vLLM and SGLang, looked up in the sources of any version without importing them.

`python tests/helpers/seams.py WHEEL...` says for each wheel (or folder that holds `vllm/` or `sglang/`) what is missing
there.
"""

import ast
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

MOE = "vllm/model_executor/layers/fused_moe"
SEAMS: dict[str, tuple[str, ...]] = {  # file -> names; "Class.method", "Class", "function", or an imported name
    "vllm/engine/arg_utils.py": ("EngineArgs.create_engine_config", "VllmConfig"),
    "vllm/config/vllm.py": ("VllmConfig.compute_hash",),
    "vllm/entrypoints/cli/main.py": ("main",),
    "vllm/entrypoints/cli/serve.py": ("ServeSubcommand.validate",),
    "vllm/model_executor/model_loader/utils.py": ("initialize_model",),
    "vllm/model_executor/model_loader/base_loader.py": ("initialize_model",),
    f"{MOE}/layer.py": ("create_fused_moe_router",),
    f"{MOE}/expert_map_manager.py": ("determine_expert_map", "ExpertMapManager.placement_strategy"),
    f"{MOE}/unquantized_fused_moe_method.py": (  # this and the next two for experts on a disk
        "UnquantizedFusedMoEMethod.create_weights",
        "UnquantizedFusedMoEMethod.process_weights_after_loading",
        "UnquantizedFusedMoEMethod._init_moe_kernel",
    ),
    f"{MOE}/experts/cpu_moe.py": (
        "CPUUnquantizedExperts._padded_intermediate_size",
        "CPUUnquantizedExperts.process_weights_after_loading",
        "CPUUnquantizedExperts.apply",
    ),
    f"{MOE}/routed_experts.py": ("RoutedExperts",),
    f"{MOE}/router/base_router.py": ("BaseRouter._compute_routing",),
    f"{MOE}/router/cpu_router.py": ("CPURouter",),
    f"{MOE}/router/grouped_topk_router.py": ("GroupedTopKRouter",),
    f"{MOE}/router/fused_topk_bias_router.py": ("FusedTopKBiasRouter",),
    f"{MOE}/router/fused_topk_router.py": ("FusedTopKRouter",),
    f"{MOE}/router/custom_routing_router.py": ("CustomRoutingRouter",),
    f"{MOE}/runner/moe_runner.py": ("MoERunner.is_monolithic", "MoERunner.expert_map_manager"),
    "vllm/v1/worker/gpu_model_runner.py": (
        "GPUModelRunner._prepare_inputs",
        "GPUModelRunner._model_forward",
        "GPUModelRunner.execute_model",
        "GPUModelRunner.sample_tokens",
        "GPUModelRunner.sync_and_gather_intermediate_tensors",
        "GPUModelRunner._dummy_run",
        "GPUModelRunner.get_model",
    ),
    "vllm/v1/worker/dp_utils.py": ("_run_ar",),
    "vllm/v1/worker/gpu/model_runner.py": ("GPUModelRunner.prepare_inputs", "GPUModelRunner._dummy_run"),
    "vllm/v1/engine/async_llm.py": (
        "AsyncLLM.generate",
        "AsyncLLM.add_request",
        "AsyncLLM.get_supported_tasks",
    ),
    "vllm/v1/engine/utils.py": ("wait_for_engine_startup",),
    "vllm/v1/worker/worker_base.py": ("WorkerWrapperBase",),
    "vllm/entrypoints/openai/api_server.py": ("build_app",),
    "vllm/v1/engine/llm_engine.py": ("LLMEngine.add_request",),
    "vllm/v1/engine/core.py": ("EngineCore.add_request", "EngineCore.collective_rpc"),
    "vllm/v1/core/sched/scheduler.py": (
        "Scheduler.schedule",
        "Scheduler.update_from_output",
        "Scheduler.make_spec_decoding_stats",
    ),
    "vllm/v1/spec_decode/llm_base_proposer.py": ("set_forward_context",),
    "vllm/v1/worker/gpu/spec_decode/standalone_ar/speculator.py": ("set_forward_context",),
    "vllm/v1/worker/gpu/spec_decode/target_dependent_ar/speculator.py": ("set_forward_context",),
    "vllm/v1/core/kv_cache_utils.py": ("generate_block_hash_extra_keys",),
    "vllm/entrypoints/serve/middleware/authenticate.py": ("AuthenticationMiddleware",),
}
SRT = "sglang/srt"
SGLANG: dict[str, tuple[str, ...]] = {
    f"{SRT}/plugins/__init__.py": ("load_plugins",),
    f"{SRT}/plugins/hook_registry.py": ("HookRegistry.register", "HookType"),
    f"{SRT}/server_args.py": ("ServerArgs.check_server_args", "prepare_server_args"),
    f"{SRT}/runtime_context.py": (
        "RuntimeContext.resolved_server_args_dict",
        "get_context",
        "get_parallel",
        "get_serving",
    ),
    f"{SRT}/layers/moe/topk.py": (
        "TopK",
        "TopKConfig",
        "select_experts",
        "_post_process_topk_ids",
        "precomputed_topk_postprocess_is_noop",
    ),
    f"{SRT}/model_loader/loader.py": ("_initialize_model",),
    f"{SRT}/model_executor/model_runner.py": ("ModelRunner.forward",),
    f"{SRT}/managers/scheduler.py": (
        "Scheduler._add_request_to_queue",
        "Scheduler.get_init_info",
        "Scheduler.get_internal_state",
        "Scheduler.set_internal_state",
    ),
    f"{SRT}/managers/schedule_batch.py": ("Req.set_finish_with_abort",),
    f"{SRT}/mem_cache/unified_radix_cache.py": ("UnifiedRadixCache.checkpoint",),
    f"{SRT}/utils/common.py": ("add_prometheus_middleware", "kill_process_tree"),
    "sglang/launch_server.py": ("run_server",),
}


def names(source: str) -> set[str]:
    """What a module defines or imports, methods and properties as Class.name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {node.name, *(f"{node.name}.{n.name}" for n in inner)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def missing(read: Callable[[str], str], seams: dict[str, tuple[str, ...]] = SEAMS) -> list[str]:
    """The seams that are not there; `read` gives a file's text or raises KeyError or OSError."""
    lost = []
    for file, wanted in seams.items():
        try:
            there = names(read(file))
        except (KeyError, OSError):
            lost.append(file)
            continue
        lost += [f"{file}: {name}" for name in wanted if name not in there]
    return lost


def reader(place: Path) -> Callable[[str], str]:
    """Of a wheel, or of a folder that holds the package."""
    if place.is_dir():
        return lambda file: (place / file).read_text()
    wheel = zipfile.ZipFile(place)
    return lambda file: wheel.read(file).decode()


def installed(package: str = "vllm") -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.parent


if __name__ == "__main__":
    for given in sys.argv[1:]:
        read = reader(Path(given))
        lost = missing(read, SGLANG if not missing(read, {"sglang/version.py": ()}) else SEAMS)
        print(f"{Path(given).name}: {'all there' if not lost else '; '.join(lost)}")
