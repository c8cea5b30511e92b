"""Data-parallel engines on this machine, a process a rank, told by environment variables as in vLLM's own example of
offline data parallelism: `python data_parallel.py MODEL LAYOUTS SCENARIOS`. Prints what each rank of each layout found,
a line of JSON each. The ranks are forked, so vLLM is imported once.

A scenario: the policy, how many requests each rank has, which of them are exact ("odd": every second one), the step at
which a rank's first request is aborted, and for each rank its share of shadow steps and its bound on the KL.
"""

import json
import os
import socket
import sys
import time
import traceback
from typing import Any

from parallel_worker import loads
from tiny_vllm import prompts
from vllm import LLM, SamplingParams

from lynx_moe.control import bound, measured
from lynx_moe.engines.shared.tell.collector import Workers
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.shadows.sample import Sums
from lynx_moe.engines.vllm.tell.relay import DIRECTORY

bound.DENSE, bound.FEW, measured.GROUPS = 1.0, 16, 4  # runs are short
METRICS = ("lynx_moe_rows", "lynx_moe_shadow_steps")


def run(llm: Any, rank: int, scenario: dict[str, Any]) -> dict[str, Any]:
    """Both ranks take the same steps: who has nothing to do makes a dummy batch, as vLLM has it."""
    engine = llm.llm_engine
    policy, most = (scenario.get(name, [None, None])[rank] for name in ("policies", "max_kl"))
    llm.collective_rpc("lynx_set_policy", args=(policy or scenario["policy"], {"max_kl": most}))
    llm.collective_rpc("lynx_reset_stats")
    shadows = active().shadows
    shadows.share, shadows.sums, before = scenario.get("shadow", [0, 0])[rank], Sums(), shadows.sums.steps
    shadows.sums.steps = before  # a counter, which does not fall
    loads.clear()
    for i, prompt in enumerate(prompts(scenario["requests"][rank], seed=5 + rank)):
        wish = {"lynx_moe": "exact"} if scenario.get("exact") == "odd" and i % 2 else None
        greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, "logprobs": 1}
        engine.add_request(str(i), prompt, SamplingParams(max_tokens=6 + (7 * i) % 16, extra_args=wish, **greedy))
    got, step, dummies = {}, 0, 0
    while engine.has_unfinished_requests():
        step, dummies = step + 1, dummies + engine.should_execute_dummy_batch
        for output in engine.step():
            if output.finished:
                best = output.outputs[0]
                chosen = [one[token].logprob for one, token in zip(best.logprobs, best.token_ids, strict=True)]
                got[output.request_id] = [list(best.token_ids), chosen]
        if step == scenario.get("abort"):
            engine.abort_request(["0"])
    stats, probe = llm.collective_rpc("lynx_stats"), llm.collective_rpc("lynx_probe")
    stats[0]["shadows"]["steps"] -= before
    told = {"got": got, "dummies": dummies, "stats": stats[0], "probe": probe[0]}
    return {**told, "loads": sum(loads) / len(loads), "passes": len(loads) / len(active().layers)}


def metrics(engine: Any, rank: int) -> dict[str, dict[str, float]]:
    """What a scrape of the server finds while both ranks are there: METRICS, by vLLM's engine label."""
    time.sleep(1)
    engine.has_unfinished_requests()  # both wait here
    families = {family.name: family for family in Workers().collect()} if rank == 0 else {}
    engine.has_unfinished_requests()
    found: dict[str, dict[str, float]] = {name: {} for name in METRICS if families}
    for name, values in found.items():
        for sample in families[name].samples:
            values[sample.labels["engine"]] = values.get(sample.labels["engine"], 0) + sample.value
    return found


def serve(model: str, layout: dict[str, Any], scenarios: list[dict[str, Any]], rank: int, port: int) -> None:
    """One rank of two."""
    ours = {"RANK": rank, "RANK_LOCAL": rank, "SIZE": 2, "MASTER_IP": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({f"VLLM_DP_{name}": str(value) for name, value in ours.items()})
    if "enable_expert_parallel" in layout:  # as on two machines: no directory is shared
        os.environ[DIRECTORY] += f"/{rank}"
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        dtype="bfloat16",
        distributed_executor_backend="uni",
        worker_extension_cls="parallel_worker.Probe",
        additional_config={"lynx_moe": {"policy": "vanilla", "metrics_every": 0.2}},
        **layout,
    )
    runs = [run(llm, rank, scenario) for scenario in scenarios]
    print("\n" + json.dumps({"rank": rank, "runs": runs, "metrics": metrics(llm.llm_engine, rank)}), flush=True)


if __name__ == "__main__":
    model, layouts, scenarios = sys.argv[1], *map(json.loads, sys.argv[2:])
    for layout in layouts:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(2):
            if child := os.fork():
                children.append(child)
                continue
            try:
                serve(model, layout, scenarios, rank, port)
            finally:  # the groups of two ranks are not taken apart in turn: whoever is first would be waited for
                failed = sys.exc_info()[0] is not None
                if failed:
                    traceback.print_exc()
                os._exit(failed)
        ended = [os.waitpid(child, 0)[1] for child in children]
        if any(ended):
            sys.exit(1)
