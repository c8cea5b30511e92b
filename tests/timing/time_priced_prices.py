"""Times `priced` on a CPU, at one price and at four: `python tests/timing/time_priced_prices.py`. For docs/vllm.md.

Interleaved; warm, and after 64 MiB of other memory were swept through the caches, as a step's weights do.
"""

import statistics
import time

import torch

from lynx_moe import RouterSpec, Routing, Rows, make_policy
from lynx_moe.routing import select

SPEC = RouterSpec(num_experts=128, top_k=8)
TIERS = torch.tensor([0.0, 0.01, 0.03, 0.1])


def main() -> None:
    torch.set_num_threads(1)
    policy, sweep = make_policy("priced"), torch.zeros(2**24)
    for num_rows in (1, 4, 8, 16, 64):
        logits = (torch.randn(num_rows, 128) * 2).bfloat16()
        own = select(logits, SPEC)
        own = Routing(own.ids.int(), own.weights)
        mixed = Rows(price=TIERS[torch.arange(num_rows) % 4])
        cases = {"one price": (policy.decide, None), "four": (policy.decide, mixed), "torch": (policy.route, None)}
        found: dict[tuple[str, bool], list[float]] = {}
        for _ in range(100):
            for name, (decide, rows) in cases.items():
                for cold in (True, False):
                    if cold:
                        sweep.add_(1.0)
                    start = time.perf_counter()
                    decide(logits, SPEC, rows, own)
                    found.setdefault((name, cold), []).append(1e6 * (time.perf_counter() - start))
        words = [f"{name}{' swept' * cold} {statistics.median(us):.0f}" for (name, cold), us in found.items()]
        print(f"{num_rows} rows, µs: {', '.join(words)}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
