"""Steps "transformers-SHAPE", where vLLM cannot be had: a decode step of a published shape in transformers.

`grouped_mm` experts, a static cache, one CUDA graph per policy, replayed in turns. No scheduler and no sampling: it is
the model's forward alone. `vanilla` is the model without anything of ours; the others count too. Tokens are random, and
every step decodes at the same place, so that a graph's work stays the same.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lynx_moe.engines.transformers.cache import cache_name
from lynx_moe.lab.gpu.checks.decision import _seconds
from lynx_moe.lab.gpu.checks.serve import BATCHES, policies_for
from lynx_moe.lab.gpu.checks.step import Measure
from lynx_moe.lab.speed import measure as speed
from lynx_moe.lab.speed.random_weights import EMBEDDINGS, ROUTERS, fill_routing
from lynx_moe.lab.speed.shapes import GATES, SHAPES, Shape, num_experts, tiny, write_config

CONTEXT = 64


def on(shape: str) -> Measure:
    """The step of one shape."""
    return partial(measure, shape)


def measure(name: str, dry: bool) -> dict[str, Any]:
    """The record, as vLLM's step has it; TPOT is the forward's time."""
    shape = tiny(SHAPES[name]) if dry else SHAPES[name]
    device = "cpu" if dry else "cuda"
    policies, batches = policies_for(shape.config["num_experts_per_tok"]), (2,) if dry else BATCHES
    model = build(shape, device)
    samples, counted = [], {policy: dict[int, dict[str, float]]() for policy in policies[1:]}
    for batch in batches:
        forwards = {}
        for policy in policies:
            forwards[policy], experts = _forward(model, policy, batch, device)
            if policy in counted:
                counted[policy][batch] = experts
        for number in range(4):
            turn = number % len(policies)
            for policy in [*policies[turn:], *policies[:turn]]:
                seconds = statistics.median(_seconds(forwards[policy], device) for _ in range(3 if dry else 20))
                line = {"batch": batch, "policy": policy, "round": number, "tpot_ms": 1e3 * seconds}
                samples.append({**line, "before": 0.0, "after": 0.0, "decision_us": None})
    return {
        "title": f"{shape.title}, transformers",
        "layers": shape.all_layers,
        "num_experts": num_experts(shape),
        "top_k": shape.config["num_experts_per_tok"],
        "expert_bytes": shape.expert_mib * 2**20,
        "gates": shape.gates.about(),
        "samples": samples,
        "summary": speed.summarise(samples, policies, batches),
        "experts": counted,
        "kernels_us": {},
    }


def build(shape: Shape, device: str) -> Any:
    """The model with random weights, unquantised; `random_weights.fill_routing` draws its embeddings and gates."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        path = write_config(shape, shape.all_layers, Path(folder)) / "config.json"
        config = {
            name: value
            for name, value in json.loads(path.read_text(encoding="utf-8")).items()
            if name != "quantization_config"
        }
        path.write_text(json.dumps(config), encoding="utf-8")
        settings = AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16, experts_implementation="grouped_mm")
    rng = torch.Generator(device).manual_seed(0)
    for name, weight in model.eval().named_parameters():
        if name.endswith((*EMBEDDINGS, *ROUTERS)):
            fill_routing(name, weight, getattr(settings, GATES), rng)
    return model


@torch.inference_mode()
def _forward(model: Any, policy: str, batch: int, device: str) -> tuple[Callable[[], Any], dict[str, float]]:
    """One decode step as a function (on a GPU a graph's replay), and the distinct experts it loads."""
    from transformers import StaticCache

    from lynx_moe.engines.transformers import apply
    from lynx_moe.routing import Rows

    cache = StaticCache(config=model.config, max_cache_len=CONTEXT)
    tokens = torch.randint(0, model.config.vocab_size, (batch, 1), device=device)
    place = torch.full((1,), CONTEXT // 2, device=device)
    run = apply(model, policy)
    run.rows = Rows(remap=torch.ones(batch, dtype=torch.bool, device=device))

    def step() -> Any:
        given = {str(cache_name(model.forward)): cache, "cache_position": place, "position_ids": place.expand(batch, 1)}
        return model(tokens, use_cache=True, **given).logits

    def routed() -> Any:
        if policy == "vanilla":
            return step()
        with run:
            return step()

    for _ in range(3):
        routed()
    stats = run.stats()
    experts = {"before": stats.mean_before, "after": stats.mean_after}
    if device == "cpu":
        return torch.inference_mode()(routed), experts
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routed()
    return graph.replay, experts
