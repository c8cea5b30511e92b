"""What ranks that wait for each other exclude: attention data parallel, and others that share out a step's tokens.

Under data parallelism every rank routes its own requests' tokens, and decides on these alone; vLLM then sends tokens to
the experts, by whatever back end. Its ranks meet in every MoE layer, so each makes the same passes: who has no requests
runs a dummy.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from lynx_moe.policies import DEFAULT, make_policy

TELL, TOKENS = "_run_ar", "orig_num_tokens_per_ubatch"  # vLLM's function by which ranks tell their tokens, and these


def refusals(vllm_config: Any) -> Iterator[str]:
    """Why an engine with these settings would feed the policy other rows than the runner prepares, or stand still."""
    parallel = vllm_config.parallel_config
    refused = {
        f"prefill_context_parallel_size={parallel.prefill_context_parallel_size} splits tokens over ranks, which is "
        "not supported yet; use 1": parallel.prefill_context_parallel_size > 1,
        f"data_parallel_size={parallel.data_parallel_size} with tensor_parallel_size={parallel.tensor_parallel_size} "
        "and expert parallelism makes vLLM deal a step's tokens out to the tensor-parallel ranks (sequence-parallel "
        "MoE), each of which would decide on a part of the rows, which is not supported yet; use more data-parallel "
        "ranks with tensor_parallel_size=1, or leave out --enable-expert-parallel": parallel.use_sequence_parallel_moe,
        "microbatches (enable_dbo, ubatch_size) split the decode batch, which is not supported yet; switch them "
        "off": parallel.use_ubatching,
        "enable_elastic_ep changes the number of ranks under way, which is not supported yet; leave it "
        "out": parallel.enable_elastic_ep,
        f"data_parallel_size={parallel.data_parallel_size}: this vLLM does not tell whether a layer routes before or "
        "after it gathers the tokens of all ranks; use vLLM 0.30 or newer, or 1": meet(vllm_config)
        and not _tells_who_gathers(),
    }
    yield from (reason for reason, found in refused.items() if found)


def default(data_parallel: int) -> str:
    """The policy that acts where none is named. A rank that decides alone shares what it saves with all others, so it
    asks its share of the price: there the last expert that it lets go costs its rows as much for each expert that the
    ranks then load less as where all decide together (docs/results/ranks.md)."""
    return DEFAULT if data_parallel == 1 else f"{DEFAULT}:price={make_policy(DEFAULT).asks / data_parallel:g}"


def meet(vllm_config: Any) -> bool:
    """Whether other engines wait for this one in every MoE layer: nothing may run the experts once more alone."""
    return bool(vllm_config.parallel_config.data_parallel_size > 1)


def settle() -> bool:
    """Whether such engines can say, where they tell how many tokens they have, how many passes they ask for."""
    import vllm.v1.worker.dp_utils as dp_utils

    tell = getattr(dp_utils, TELL, None)
    return tell is not None and TOKENS in inspect.signature(tell).parameters


def _tells_who_gathers() -> bool:
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    return hasattr(MoERunner, "do_naive_dispatch_combine")
