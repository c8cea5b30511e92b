"""Who tells of a vLLM worker (`shared/tell/exporter.py`), and under which labels."""

import os
import time
from pathlib import Path
from typing import Any

from lynx_moe.engines.shared.tell.exporter import DIRECTORY, Teller, Writer, write_on
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.tell.relay import Key, Place, Relay
from lynx_moe.engines.vllm.tell.samples import samples


def start(plan: Plan, model: Any, vllm_config: Any, place: Place) -> None:
    """Writes the plan's numbers while the model lives, unless another rank tells the same (tensor parallelism)."""
    from vllm.distributed import get_tensor_model_parallel_rank

    every = plan.options.metrics_every
    if not every or (place.near and DIRECTORY not in os.environ):
        return
    if place.near and place.rank == 0 and place.size > 1:
        name = f"{os.getpid()}-{id(plan)}"
        Relay(place.store.clone(), range(1, place.size), Path(os.environ[DIRECTORY]), name, every).start(model)
    if get_tensor_model_parallel_rank() == 0:
        to = None if place.near else Key(place.store.clone(), place.rank)
        write_on(Writer(plan, teller(vllm_config, every, place.instance), samples, to), model)


def teller(vllm_config: Any, every: float, instance: str) -> Teller:
    """The labels are those of vLLM's own metrics, and the pipeline stage."""
    from vllm.distributed import get_pp_group

    labels = {
        "model_name": str(vllm_config.model_config.served_model_name),
        # the rank that vLLM labels its own metrics with; `data_parallel_rank` is 0 in engines that stand alone
        "engine": str(vllm_config.parallel_config.data_parallel_index),
        "stage": str(get_pp_group().rank_in_group),
    }
    return Teller(labels=labels, instance=instance, since=time.time(), every=every)
