"""What a worker of a parallel engine gains in tests: a digest of all final ids, and experts on ranks for the CPU build.

vLLM 0.32's CPU kernels are not told where experts live, and crash under expert parallelism. Here ids of experts that
live elsewhere weigh nothing, as vLLM's kernels for GPUs have it.
"""

import hashlib
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from lynx_moe.engines.vllm.plan import Plan, active
from lynx_moe.engines.vllm.worker import WorkerExtension

torch.cpu._init_amx()  # attention asks the kernel for AMX, and a dummy step has none: its experts would end in SIGILL
digest = {"ids": hashlib.sha256(), "fullest": 0, "rows": 0}
_reroute, _apply = Plan.reroute, CPUUnquantizedExperts.apply


def reroute(plan: Plan, logits: Any, weights: Any, ids: Any, layer: int, *more: Any) -> Any:
    final = _reroute(plan, logits, weights, ids, layer, *more)
    if plan.rows.kind.acts:
        digest["ids"].update((ids if final is None else final.ids).long().numpy().tobytes())
        digest["rows"] += len(ids)
    return final


def apply(self: Any, *args: Any, **kwargs: Any) -> None:
    if (map_E := kwargs.get("expert_map")) is not None:
        local = map_E[kwargs["topk_ids"].long()]
        kwargs["topk_weights"] = kwargs["topk_weights"].where(local >= 0, 0.0)
        kwargs["topk_ids"] = local.clamp(min=0).to(kwargs["topk_ids"].dtype)
    _apply(self, *args, **kwargs)


Plan.reroute, CPUUnquantizedExperts.apply = reroute, apply  # type: ignore[method-assign]


class Probe(WorkerExtension):
    """lynx_probe: rows seen and their digest (all layers of this worker), and each layer's experts of this rank."""

    def lynx_probe(self) -> dict[str, Any]:
        layers = [
            (layer.name, None if layer.here_E is None else torch.where(layer.here_E)[0].tolist())
            for layer in self._layers()
        ]
        return {"digest": digest["ids"].hexdigest(), "rows": digest["rows"], "layers": layers}

    def _layers(self) -> Any:
        return active().layers
