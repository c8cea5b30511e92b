"""Drafts from suffix trees (`suffix`), where vLLM finds the package that builds them: their lengths differ from request
to request and from step to step. Exact answers are plain vLLM's, whatever is remapped beside them."""

from typing import Any

import pytest
from tiny_vllm import engine, tokens
from vllm import SamplingParams

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.testbed import path, tasks

pytest.importorskip("arctic_inference", reason="needs arctic-inference, which vLLM's suffix decoding asks for")

OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False}
SUFFIX = {"method": "suffix", "num_speculative_tokens": 4}
PROMPTS = [item.prompt for task in list(tasks.TASKS)[:6] for item in tasks.test_items(task, 3, seed=3)]
EXACT, REMAP = {"lynx_moe": "exact"}, {"lynx_moe_verify": "remap"}


def ask(llm: Any, *wishes: Any) -> list[list[int]]:
    llm.reset_prefix_cache()
    params = [
        SamplingParams(temperature=0, max_tokens=40, extra_args=wishes[number % len(wishes)])
        for number in range(len(PROMPTS))
    ]
    return tokens(llm.generate(PROMPTS, params, use_tqdm=False))


def test_exact_answers_are_plain_vllm_s_beside_remapped_drafts() -> None:
    model = str(path("qwen3-moe"))
    with engine(model, **OPTIONS) as llm:
        plain = ask(llm, None)
    with engine(model, "oea:k0=2", speculative_config=SUFFIX, **OPTIONS) as llm:
        ask(llm, EXACT)  # what was answered before is what it drafts from
        lynx_vllm.reset_stats()
        mixed = ask(llm, EXACT, REMAP)
        told = lynx_vllm.stats().verified
    assert mixed[::2] == plain[::2]
    assert told is not None
    print(f"accepted length {told['accepted_length']:.2f}: {told['accepted']} of {told['drafted']}")
    assert 0 < told["remappable_rows"] < told["rows"]
    assert 0 < sum(told["accepted"]) < sum(told["drafted"])
    assert told["drafted"] == sorted(told["drafted"], reverse=True)
    assert told["drafted"][-1] < told["drafted"][0]  # not all drafts are as long
