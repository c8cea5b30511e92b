"""Step "modes": the plugin in every way in which vLLM runs a step: eager, full and piecewise CUDA graphs, both runners.

For each, three engines on a tiny shape, each in a process of its own, all at once: without the plugin, with `vanilla`,
whose tokens must be the same, and with `priced`, which must load fewer experts. Batches of 5 are padded to 8. In a
fourth engine graphs are swapped (`graphs.py`): there each policy must say what it says in its own engine.
"""

import os
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from lynx_moe.lab.gpu.checks.verdict import Tokens, judge, may_swap
from lynx_moe.lab.shared.engine import in_own_process, open_engine, run_batch
from lynx_moe.lab.speed import measure as speed
from lynx_moe.lab.speed.random_weights import LOAD_FORMAT, register_loader
from lynx_moe.lab.speed.shapes import SHAPES, tiny, write_config

SIZES = [1, 2, 4, 8, 16]
FULL = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": SIZES}
PIECES = {"cudagraph_mode": "PIECEWISE", "cudagraph_capture_sizes": SIZES}
MODES: dict[str, tuple[str, dict[str, Any]]] = {  # (V2 model runner, the engine's options)
    "V1 eager": ("0", {"enforce_eager": True}),
    "V1 FULL": ("0", {"compilation_config": FULL}),
    "V1 PIECEWISE": ("0", {"compilation_config": PIECES}),
    "V2 FULL": ("1", {"compilation_config": FULL}),
    "V2 PIECEWISE": ("1", {"compilation_config": PIECES}),
}
SWAPPING = "V1 FULL"  # what the speed of shapes is measured with
BATCHES, NEW_TOKENS = (5, 16), 24
PATIENCE = 120  # seconds, on a GPU
KINDS = ("plain", "vanilla", "priced")
SWAPPED = "swapped"


def measure(dry: bool) -> dict[str, Any]:
    """{"modes": by mode what `verdict.judge` says, "swap": whether graphs may be swapped}. Dry: eager, on the CPU."""
    modes = list(MODES)[:1] if dry else list(MODES)
    swapping = modes[0] if dry else SWAPPING
    pairs = [(swapping, SWAPPED), *((mode, kind) for mode in modes for kind in KINDS)]
    pool = ThreadPoolExecutor(1 if dry else len(pairs))
    tries = {pair: pool.submit(_engine, *pair, dry) for pair in pairs}
    wait(tries.values(), timeout=None if dry else PATIENCE)
    pool.shutdown(wait=False, cancel_futures=True)
    found = {pair: _outcome(tried) for pair, tried in tries.items()}
    judged = {mode: judge(*(found.get((mode, kind), {}) for kind in (*KINDS, SWAPPED))) for mode in modes}
    return {"modes": judged, "swap": may_swap(judged[swapping])}


def generate(mode: str, kind: str, dry: bool) -> dict[str, Any]:
    """ "tokens" of every batch, and with a policy "experts": distinct ones by the model's routing and by the policy's.
    Of the engine in which policies are swapped, each policy's tokens."""
    runner, options = MODES[mode]
    os.environ |= {"VLLM_USE_V2_MODEL_RUNNER": runner, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    register_loader()
    memory = {} if dry else {"kv_cache_memory_bytes": 2**28, "gpu_memory_utilization": 0.03}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLLM_CACHE_ROOT"] = folder  # engines that start together would write the same compiled graphs
        llm = open_engine(
            write_config(tiny(SHAPES["qwen3-30b"]), 2, Path(folder)),
            {"plain": None, SWAPPED: "vanilla"}.get(kind, kind),
            load_format=LOAD_FORMAT,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=256,
            max_num_seqs=max(BATCHES),
            **memory,
            **options,
        )
        if kind == SWAPPED:
            use = _swaps(llm, dry)
            return {policy: (use(policy), _tokens(llm))[1] for policy in ("vanilla", "priced", "vanilla")}
        found: dict[str, Any] = {"tokens": _tokens(llm)}
        if kind != "plain":
            from lynx_moe.engines import vllm as engine

            stats = engine.stats()
            found["experts"] = stats.mean_before, stats.mean_after
        return found


def _tokens(llm: Any) -> Tokens:
    rng = random.Random(0)
    return [run_batch(llm, speed.draw_prompts(batch, rng), NEW_TOKENS).token_ids for batch in BATCHES]


def _swaps(llm: Any, dry: bool) -> Callable[[str], str]:
    if dry:
        from lynx_moe.engines import vllm as engine

        return engine.set_policy
    from lynx_moe.lab.gpu.checks.graphs import GraphSets

    return GraphSets(llm).use


def _engine(mode: str, kind: str, dry: bool) -> dict[str, Any]:
    return in_own_process(generate, mode, kind, dry)


def _outcome(tried: Future[dict[str, Any]]) -> dict[str, Any]:
    if not tried.done():
        return {"failed": f"not done in {PATIENCE} s"}
    error = tried.exception()  # of one engine; the others say what they found
    return tried.result() if error is None else {"failed": f"{type(error).__name__}: {error}"[:300]}
