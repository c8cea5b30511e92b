"""A vLLM engine in this process, its policy switchable, and its steps timed."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # policy and statistics are reached in-process
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",  # vLLM's and torch's, about themselves
    "VLLM_NO_USAGE_STATS": "1",
}

PLUGIN = ("verify", "shadow", "experts_resident", "experts_folder", "experts_residency")
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")  # numba sets the other one's anew, as vLLM drafts n-grams by it


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one batch of requests did: seconds of each decode step, in order, and each request's new token ids."""

    step_seconds: list[float]
    token_ids: list[list[int]]


def prepare(threads: int | None = None) -> None:
    """Sets ENVIRONMENT where the user has not. Some is read as a process starts: call this before starting one.

    threads: for torch's operations; None: one per core, since vLLM serves with a single one in-process otherwise.
    """
    threads = threads or len(os.sched_getaffinity(0))
    for name, value in {**ENVIRONMENT, **dict.fromkeys(THREADS, str(threads))}.items():
        os.environ.setdefault(name, value)


def in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `function` returns, run in a new process: vLLM reads its environment at the start, and does not leave a
    process as it found it. What the function raises is raised here; RuntimeError where its process is killed."""
    prepare()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise RuntimeError(
                "the measurement's process ended without a word; what it said stands above (was it killed for memory?)"
            ) from None


def import_vllm() -> Any:
    """vLLM, imported with ENVIRONMENT set. Raises ValueError if it is missing."""
    prepare()
    try:
        import vllm

        vllm.LLM  # noqa: B018  (vLLM imports most of itself at this first access)
    except ImportError as error:
        raise ValueError(
            f"vLLM cannot be imported ({error}); install it, or on a machine without GPU, in a clone of lynx-moe: "
            "pip install '.[cpu]', then pip uninstall torchvision torchaudio torchcodec"
        ) from None
    return vllm


def open_engine(model: Path | str, policy: str | None = "vanilla", **options: Any) -> Any:
    """A `vllm.LLM` with the plugin configured; policy None: without it. Those among the options that PLUGIN names are
    the plugin's. Raises ValueError if vLLM is missing."""
    vllm = import_vllm()
    if policy is not None:
        from lynx_moe.engines.vllm.plugin import register

        register()  # a clone that is not installed has no entry point
        own = {name: options.pop(name) for name in PLUGIN if name in options}
        options["additional_config"] = {"lynx_moe": {"policy": policy, "log_every": 0, "shadow": 0, **own}}
    return vllm.LLM(model=str(model), use_tqdm_on_load=False, **options)


def run_batch(
    llm: Any,
    prompts: Sequence[list[int]],
    num_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
    after_step: Callable[[], None] | None = None,
) -> Run:
    """Decodes all prompts together for exactly num_tokens each, and times every step after the first token by `clock`.

    All requests start in one step and end in one, so each timed step is a pure decode step of the whole batch. Tokens
    are sampled, each request by a seed of its own: greedy requests of a random model soon say all the same.
    """
    from vllm import SamplingParams

    engine = llm.llm_engine
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, temperature=1, seed=number, detokenize=False)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    seconds: list[float] = []
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        start = clock()
        outputs = engine.step()
        seconds.append(clock() - start)
        if after_step is not None:
            after_step()
        tokens.update({out.request_id: list(out.outputs[0].token_ids) for out in outputs})
    return Run(step_seconds=seconds[-(num_tokens - 1) :], token_ids=[tokens[str(n)] for n in range(len(prompts))])
