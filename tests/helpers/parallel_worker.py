"""What a worker of a parallel engine gains in tests: a digest of all final ids, and experts on ranks for the CPU build.

vLLM 0.32's CPU kernels are not told where experts live, and crash under expert parallelism. Here ids of experts that
live elsewhere weigh nothing, as vLLM's kernels for GPUs have it.
"""

import hashlib
from typing import Any

import gathering  # noqa: F401 - collectives that the CPU's communicator lacks
import torch
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from lynx_moe.control import latency
from lynx_moe.engines.vllm.front.worker import WorkerExtension
from lynx_moe.engines.vllm.step.plan import Plan, active
from lynx_moe.routing import loaded

torch.cpu._init_amx()  # attention asks the kernel for AMX, and a dummy step has none: its experts would end in SIGILL
latency.WINDOW = 4  # steps: runs are short
loads: list[int] = []  # how many experts each call of the kernel found on this rank, whoever sent the tokens
seen = {"ids": hashlib.sha256(), "decisions": 0, "fullest": 0}
_reroute, _apply = Plan.reroute, CPUUnquantizedExperts.apply


def reroute(plan: Plan, logits: Any, weights: Any, ids: Any, layer: int, *more: Any) -> Any:
    final = _reroute(plan, logits, weights, ids, layer, *more)
    if plan.rows.kind.acts:
        got = (ids if final is None else final.ids).long()
        seen["ids"].update(got.numpy().tobytes())
        seen["decisions"] += 1
        seen["fullest"] += int(plan.layers[layer].placement.count(loaded(got, logits.shape[1])).max())
    return final


def apply(self: Any, *args: Any, **kwargs: Any) -> None:
    map_E, local = kwargs.get("expert_map"), kwargs["topk_ids"].long()
    if map_E is not None:
        local = map_E[local]
        kwargs["topk_weights"] = kwargs["topk_weights"].where(local >= 0, 0.0)
        kwargs["topk_ids"] = local.clamp(min=0).to(kwargs["topk_ids"].dtype)
    loads.append(len(local[local >= 0].unique()))
    _apply(self, *args, **kwargs)


Plan.reroute, CPUUnquantizedExperts.apply = reroute, apply  # type: ignore[method-assign]


class Probe(WorkerExtension):
    """lynx_probe: since the last call, a digest of the ids of all decisions, how many there were, and the mean of the
    fullest rank's experts; and the experts of this rank by layer."""

    def lynx_probe(self) -> dict[str, Any]:
        found = {"digest": seen["ids"].hexdigest(), "decisions": seen["decisions"]}
        found["fullest"] = seen["fullest"] / max(seen["decisions"], 1)
        here = {
            layer.name: None if layer.here_E is None else layer.here_E.nonzero().flatten().tolist()
            for layer in active().layers
        }
        seen.update(ids=hashlib.sha256(), decisions=0, fullest=0)
        return {**found, "here": here}
