"""Who tells of a vLLM worker (`shared/tell/exporter.py`), and under which labels."""

import os
import time
from typing import Any

from lynx_moe.engines.shared.tell.exporter import DIRECTORY, Teller, Writer, write_on
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.tell.samples import samples


def start(plan: Plan, model: Any, vllm_config: Any) -> None:
    """Writes the plan's numbers while the model lives, unless another rank tells the same (tensor parallelism)."""
    from vllm.distributed import get_tensor_model_parallel_rank

    if plan.options.metrics_every and DIRECTORY in os.environ and get_tensor_model_parallel_rank() == 0:
        write_on(Writer(plan, teller(vllm_config, plan.options.metrics_every), samples), model)


def teller(vllm_config: Any, every: float) -> Teller:
    """The labels are those of vLLM's own metrics, and the pipeline stage."""
    from vllm.distributed import get_pp_group

    labels = {
        "model_name": str(vllm_config.model_config.served_model_name),
        # the rank that vLLM labels its own metrics with; `data_parallel_rank` is 0 in engines that stand alone
        "engine": str(vllm_config.parallel_config.data_parallel_index),
        "stage": str(get_pp_group().rank_in_group),
    }
    return Teller(labels=labels, instance=vllm_config.instance_id, since=time.time(), every=every)
