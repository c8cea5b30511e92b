"""Steps "vllm-SHAPE": time per output token of policies on a published shape with random weights, in vLLM.

On a GPU in turns under FULL decode graphs (`graphs.py`), without inductor, whose compilation would take minutes;
counted apart, because counting costs a launch per layer. A dry run is eager, on the CPU, in a tiny size.
"""

import os
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lynx_moe.lab.gpu.checks.decision import compile_ahead
from lynx_moe.lab.gpu.checks.step import Measure
from lynx_moe.lab.shared.engine import open_engine, run_batch
from lynx_moe.lab.speed import measure as speed
from lynx_moe.lab.speed.random_weights import LOAD_FORMAT, register_loader
from lynx_moe.lab.speed.shapes import SHAPES, Shape, num_experts, tiny, write_config
from lynx_moe.policies import ModelShape, make_policy

POLICIES = ("vanilla", "priced", "lynx", "oea:k0={k0}", "xshare:alpha=0.5")
BATCHES = (1, 4, 8, 16, 32, 64, 128)
PROFILED_STEPS = 4
MOE_WORDS = ("moe", "topk", "matmul_ogs", "grouped_mm", "keep_kernel", "reroute_kernel")


def on(shape: str) -> Measure:
    """The step of one shape."""
    return partial(measure, shape)


def policies_for(top_k: int) -> list[str]:
    """oea:k0=3 where a row has 8 experts, fewer where it has fewer."""
    return [policy.format(k0=min(3, max(1, top_k // 2))) for policy in POLICIES]


def measure(name: str, dry: bool) -> dict[str, Any]:
    """The record: samples and summary as `lynx-moe bench` has them, experts per batch and policy, kernels of a step."""
    shape = tiny(SHAPES[name]) if dry else SHAPES[name]
    top_k = shape.config["num_experts_per_tok"]
    policies, batches, rounds = policies_for(top_k), (2,) if dry else BATCHES, 1 if dry else 3
    if not dry:
        renormalize = {"renormalize": shape.config.get("norm_topk_prob", True)}
        known = ModelShape(
            model_type=shape.config["model_type"],
            num_layers=shape.all_layers,
            num_experts=num_experts(shape),
            top_k=top_k,
        )
        specs = [make_policy(text).for_model(known).spec for text in policies[1:]]
        compile_ahead([(text, batch, known.num_experts, top_k, renormalize) for text in specs for batch in batches])
    llm = open_all_layers(shape, batches, "vanilla", dry)
    from lynx_moe.engines import vllm as engine

    use: Any = engine.set_policy
    if not dry:
        from lynx_moe.lab.gpu.checks.graphs import GraphSets

        use = GraphSets(llm).use
    samples = speed.interleaved(llm, use, policies, batches, rounds, print)
    counted = {policy: {batch: _count(llm, use, policy, batch, dry) for batch in batches} for policy in policies[1:]}
    kernels = {} if dry else {p: {batch: _kernels(llm, use, p, batch) for batch in batches[::2]} for p in policies}
    found = {"samples": samples, "summary": speed.summarise(samples, policies, batches)}
    return {**about(shape), **found, "experts": counted, "kernels_us": kernels}


def about(shape: Shape) -> dict[str, Any]:
    """What a record says of its shape."""
    return {
        "title": shape.title,
        "layers": shape.all_layers,
        "num_experts": num_experts(shape),
        "top_k": shape.config["num_experts_per_tok"],
        "expert_bytes": shape.expert_mib * 2**20,
        "gates": shape.gates.about(),
    }


def open_all_layers(
    shape: Shape, batches: Sequence[int], policy: str, eager: bool, rows: Sequence[int] = (), **options: Any
) -> Any:
    """The engine: V1 runner, FULL graphs that record the policy, of so many rows (none: as the batches have), or eager;
    more of vLLM's own options."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    register_loader()
    graphs = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": list(rows or batches)}
    more = {"enforce_eager": True} if eager else {"compilation_config": graphs, "gpu_memory_utilization": 0.9}
    with tempfile.TemporaryDirectory() as folder:
        return open_engine(
            write_config(shape, shape.all_layers, Path(folder)),
            policy,
            load_format=LOAD_FORMAT,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            dtype="bfloat16",
            max_model_len=512,
            max_num_seqs=max(batches),
            **more,
            **options,
        )


def _count(llm: Any, use: Any, policy: str, batch: int, dry: bool) -> dict[str, float]:
    """Mean distinct experts per layer, by the model's own routing and by the policy's."""
    from lynx_moe.engines import vllm as engine

    use(policy) if dry else use(policy, counting=True)
    engine.reset_stats()
    run_batch(llm, speed.draw_prompts(batch, random.Random(1)), speed.NEW_TOKENS)
    stats = engine.stats()
    return {"before": stats.mean_before, "after": stats.mean_after}


def _kernels(llm: Any, use: Any, policy: str, batch: int) -> dict[str, Any]:
    """Microseconds on the GPU of a decode step: in all, in kernels of the MoE layers, and the longest by name."""
    from torch.profiler import ProfilerActivity, profile, schedule

    use(policy)
    plan = schedule(wait=8, warmup=2, active=PROFILED_STEPS, repeat=1)
    with profile(activities=[ProfilerActivity.CUDA], schedule=plan) as profiler:
        run_batch(llm, speed.draw_prompts(batch, random.Random(1)), speed.NEW_TOKENS, after_step=profiler.step)
    times = {row.key: row.self_device_time_total / PROFILED_STEPS for row in profiler.key_averages()}
    longest = sorted(times.items(), key=lambda item: -item[1])[:10]
    moe = sum(us for name, us in times.items() if any(word in name.lower() for word in MOE_WORDS))
    return {"all": sum(times.values()), "moe": moe, "longest": dict(longest)}
