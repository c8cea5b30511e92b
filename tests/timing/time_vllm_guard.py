"""Times what a quality guard adds to calls of the operator on a CPU: `python tests/timing/time_vllm_guard.py`.

Prints the table of docs/results/cost.md. Shadow steps are not among it: their cost is that of the experts.
"""

import numpy as np
import torch
from time_vllm_op import LYNX, SPEC, microseconds

from lynx_moe.control.options import GuardOptions
from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model.operator import reroute
from lynx_moe.engines.vllm.step.plan import Plan, activate
from lynx_moe.policies import ModelShape
from lynx_moe.routing import Routing, select


def make_plan(num_rows: int, guard: GuardOptions | None) -> Plan:
    shape = ModelShape(model_type="qwen3_moe", num_layers=2, num_experts=128, top_k=8)
    options = Options(policy=LYNX, guard=guard)
    plan = Plan(options=options, shape=shape, max_rows=8192, device=torch.device("cpu"))
    plan.layers += [Layer(name=f"layers.{number}", spec=SPEC) for number in range(2)]
    plan.seal()
    plan.rows.fill(np.full(num_rows, True), np.ones(num_rows, dtype=np.int32))
    activate(plan)
    return plan


def times(num_rows: int) -> list[float]:
    """Microseconds: the operator without a guard, and with one on a layer that is not sampled; what a sample adds at
    rung 0 and at rung 1, where the rung above is decided too; the guard's part in the beginning of a step."""
    logits = torch.randn(num_rows, 128, dtype=torch.bfloat16)
    own = select(logits, SPEC)
    ids = own.ids.int()
    whole = Routing(own.ids, own.weights)
    rare = GuardOptions(max_mass_lost=1, steps=1e-6)
    plain = make_plan(num_rows, None)
    plain.begin_step()
    found = [microseconds(lambda: reroute(logits, own.weights, ids, 0), 200, 5)]
    guarded = make_plan(num_rows, rare)
    guarded.begin_step()
    found.append(microseconds(lambda: reroute(logits, own.weights, ids, 0), 200, 5))
    watch = guarded.watch
    assert watch is not None
    final = guarded.by_layer[0].decide(logits, SPEC, None, whole)
    for rung in (0, 1):
        watch.layers, watch.guard.rung = range(2), rung
        found.append(microseconds(lambda: watch.see(0, logits, whole, final, None), 200, 5))
        watch.taken.clear()
    watch.guard.rung = 0
    found.append(microseconds(lambda: watch.begin_step(acts=True), 200, 25))
    return found


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        for num_rows in (8, 16, 64):
            print(f"| {num_rows} | " + " | ".join(f"{t:.1f} µs" for t in times(num_rows)) + " |")


if __name__ == "__main__":
    main()
