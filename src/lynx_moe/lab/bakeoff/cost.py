"""What a decision itself costs: one layer, a batch of 16, with the router logits of the model."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from lynx_moe.engines.shared.layers import fitted
from lynx_moe.engines.transformers import apply
from lynx_moe.lab.bakeoff.grids import Setting
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.shared.documents import Batch
from lynx_moe.policies import make_policy
from lynx_moe.routing import Routing

MAX_BYTES, ROUNDS = 2**26, 40


def costs(model: Any, batch: Batch, grid: Sequence[Setting]) -> list[dict[str, Any]]:
    """A line per policy, by the middle setting of its grid: median and quartiles of microseconds per layer.

    Policies take turns, ROUNDS times through all layers of as many recorded steps; own routing and logits are given.
    """
    run = apply(model, "vanilla")
    recorder = run.record(MAX_BYTES)
    decode(model, batch, [run], "own")
    specs = {name: [one.spec for one in grid if one.method == name] for name in dict.fromkeys(s.method for s in grid)}
    middle = {name: found[len(found) // 2] for name, found in specs.items()}
    device = next(model.parameters()).device
    policies = {
        name: fitted(make_policy(spec).for_model(run.shape), run.layers, run.shape.name, device)
        for name, spec in middle.items()
    }
    took: dict[str, list[float]] = {name: [] for name in middle}
    with torch.inference_mode():
        for turn in range(ROUNDS):
            for name, by_layer in policies.items():
                for number, layer in enumerate(run.layers):
                    steps = recorder.parts[number]
                    logits, ids, weights = (part.to(device) for part in steps[turn % len(steps)])
                    own = Routing(ids.long(), weights)
                    start = time.perf_counter()
                    by_layer[number].decide(logits, layer.spec, None, own)
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    took[name].append(1e6 * (time.perf_counter() - start))
    return [
        {
            "kind": "cost",
            "policy": name,
            "spec": middle[name],
            "rows": len(batch.members),
            "decision_us": median(times),
            "quartiles_us": [sorted(times)[len(times) * quarter // 4] for quarter in (1, 3)],
            "num_decisions": len(times),
        }
        for name, times in took.items()
    ]
