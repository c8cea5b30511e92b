"""Exact match of a trained model on held-out tasks, served by vLLM with concurrent requests, under several policies."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.shared import record
from lynx_moe.lab.shared.engine import open_engine
from lynx_moe.lab.shared.scores import paired
from lynx_moe.testbed.tasks import TASKS, test_items

MARGIN = 4  # tokens beyond the right answer's length before an answer is cut off, as wrong


def measure(
    *,
    model: Path,
    policies: Sequence[str],
    items_per_task: int,
    concurrency: int,
    advance: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """The record of all policies on the same shuffled items (batches mix tasks), greedy, `concurrency` at a time.

    `random` without a knob stands for `random:num_keep=N`, N the distinct experts that the policy before it loaded on
    average: the control at equal cost. `advance` is called once per finished policy.
    """
    from vllm import SamplingParams

    from lynx_moe.engines import vllm as engine

    llm = open_engine(model, max_model_len=1024, max_num_seqs=concurrency, enforce_eager=True)
    tokenizer = llm.get_tokenizer()
    items = [(task, item) for task in TASKS for item in test_items(task, items_per_task)]
    random.Random(0).shuffle(items)
    params = [
        SamplingParams(temperature=0, max_tokens=len(tokenizer.encode(item.answer, add_special_tokens=False)) + MARGIN)
        for _, item in items
    ]
    results: list[dict[str, Any]] = []
    for policy in policies:
        wanted = f"random:num_keep={round(results[-1]['after'])}" if policy == "random" else policy
        full_spec = engine.set_policy(wanted)
        engine.reset_stats()
        advance(full_spec)
        outputs = llm.generate([item.prompt for _, item in items], params, use_tqdm=False)
        right = [
            out.outputs[0].text.strip() == item.answer.strip() for out, (_, item) in zip(outputs, items, strict=True)
        ]
        stats = engine.stats()
        results.append(
            {
                "policy": wanted,
                "spec": full_spec,
                "right": right,
                "before": stats.mean_before,
                "after": stats.mean_after,
                "after_by_layer": [layer.decode.mean_after for layer in stats.layers],
                "before_by_layer": [layer.decode.mean_before for layer in stats.layers],
            }
        )
    return {
        "kind": "quality",
        "environment": record.environment(),
        "model": f"{model.name}, trained (testbed)",
        "concurrency": concurrency,
        "tasks": [task for task, _ in items],
        "results": results,
        "summary": paired(results),
    }
