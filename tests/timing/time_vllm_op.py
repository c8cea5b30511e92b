"""Times a call of the operator on a CPU: `python tests/timing/time_vllm_op.py` (docs/results/cost.md)."""

import time
from collections.abc import Callable

import numpy as np
import torch

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.model.operator import reroute
from lynx_moe.engines.vllm.step.plan import Plan, activate
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec, select

SPEC = RouterSpec(num_experts=128, top_k=8)
LYNX = "lynx:alpha=3,beta=2"


def microseconds(call: Callable[[], object], repeats: int = 40, calls: int = 25) -> float:
    """The best of `repeats` means over `calls`: the machine may be shared."""
    means = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        means.append((time.perf_counter() - start) / calls * 1e6)
    return min(means)


def time_call(num_rows: int, policy: str, *, stats: bool, idle: bool = False) -> float:
    shape = ModelShape(model_type="qwen3_moe", num_layers=1, num_experts=128, top_k=8)
    options = Options(policy=policy, stats=stats)
    plan = Plan(options=options, shape=shape, max_rows=8192, device=torch.device("cpu"))
    plan.layers.append(Layer(name="layer", spec=SPEC))
    plan.seal()
    past_prompt = np.full(num_rows, not idle)
    plan.rows.fill(past_prompt, np.ones(num_rows, dtype=np.int32))
    plan.begin_step()
    activate(plan)
    logits = torch.randn(num_rows, 128, dtype=torch.bfloat16)
    own = select(logits, SPEC)
    ids = own.ids.int()
    return microseconds(lambda: reroute(logits, own.weights, ids, 0))


def main() -> None:
    torch.set_num_threads(1)
    with torch.inference_mode():
        for num_rows in (8, 16, 64):
            times = (
                time_call(num_rows, LYNX, stats=True, idle=True),
                time_call(num_rows, "vanilla", stats=True),
                time_call(num_rows, LYNX, stats=False),
                time_call(num_rows, LYNX, stats=True),
            )
            print(f"| {num_rows} | " + " | ".join(f"{t:.0f} µs" for t in times) + " |")


if __name__ == "__main__":
    main()
