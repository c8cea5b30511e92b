"""Requests to a trained model in vLLM, each with a wish of its own, and conversations that the cache may serve."""

from collections.abc import Callable
from typing import Any

from tiny_vllm import prompt_kv

from lynx_moe.testbed import tasks

POLICY = "lynx:alpha=0.3,beta=1"
WILD = "topk:k=1"  # one expert of eight, in every row whatever its neighbours are: far from any rounding
BLOCK = 32  # tokens of a block of the prefix cache
ITEMS = [item for task in list(tasks.TASKS)[:8] for item in tasks.test_items(task, 3, seed=3)]


def ask(llm: Any, modes: list[str | None], prompts: Any = None, length: int = 20, **given: Any) -> list[Any]:
    """Greedy answers, of 20 and more tokens each, so that requests end at different steps."""
    from vllm import SamplingParams

    prompts = prompts or [item.prompt for item in ITEMS]
    greedy = {"temperature": 0.0, "ignore_eos": True, "logprobs": 2, **given}
    params = [
        SamplingParams(max_tokens=length + (7 * i) % 20, extra_args=mode and {"lynx_moe": mode}, **greedy)
        for i, mode in enumerate(modes)
    ]
    return llm.generate(prompts, params, use_tqdm=False)  # type: ignore[no-any-return]


def logprobs(output: Any) -> list[dict[int, float]]:
    return [{token: found.logprob for token, found in place.items()} for place in output.outputs[0].logprobs]


def turns(llm: Any, first: str | None, second: str | None) -> tuple[int, list[int]]:
    """A conversation of two turns, among neighbours that are remapped: how many tokens of the second prompt, which
    repeats all of the first turn, came from the cache, and that prompt."""
    prompts = [{"prompt_token_ids": list(range(5 + i, 45 + i))} for i in range(4)]
    answers = ask(llm, [first, POLICY, POLICY, POLICY], prompts=prompts, length=60)
    again = [*prompts[0]["prompt_token_ids"], *answers[0].outputs[0].token_ids, 7]
    (answer,) = ask(llm, [second], prompts=[{"prompt_token_ids": again}])
    return answer.num_cached_tokens, again


def remapped_blocks(llm: Any, prompt: list[int], forget: Callable[[], Any] = lambda: None) -> tuple[int, list[bool]]:
    """How many tokens of an exact request's prompt come from a cache, and for each of its blocks whether the KV that it
    reads was written under another routing. `forget` empties what the engine does not forget with its prefix cache.

    Roundings put KV less than 0.05 apart, another routing of a whole block (WILD) more than 0.2.
    """
    cached, kv = prompt_kv(llm, prompt, BLOCK)
    llm.reset_prefix_cache()
    forget()
    alone, exact = prompt_kv(llm, prompt, BLOCK)
    assert alone == 0
    apart = (kv[-1] - exact[-1]).norm(dim=-1) / exact[-1].norm(dim=-1)  # the last layer's
    assert ((apart < 0.05) | (apart > 0.2)).all(), apart
    return cached, (apart > 0.2).tolist()
