"""MTP layers: the testbed's own, which was trained to draft, and those of other kinds of models, of random weights."""

from pathlib import Path
from typing import Any

import pytest
from drafters import with_mtp
from tiny_vllm import engine, generate, prompts, save_model, tokens
from vllm import SamplingParams

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.testbed import path, tasks

MTP = {"method": "mtp", "num_speculative_tokens": 2}
OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False}
PROMPTS = [item.prompt for task in list(tasks.TASKS)[:8] for item in tasks.test_items(task, 2, seed=3)]


def ask(llm: Any, wish: Any = None) -> list[list[int]]:
    llm.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=24, extra_args=wish)
    return tokens(llm.generate(PROMPTS, params, use_tqdm=False))


def test_the_testbed_s_layer_is_right_about_what_comes_next_and_shadow_steps_leave_its_drafts_alone() -> None:
    """Remapped verification, once with every step run twice: tokens, drafts and counts are the same."""
    found = []
    for shadow in (0, 1):
        extra = {"lynx_moe": {"policy": "priced:price=0.1", "verify": "remap", "shadow": shadow}}
        with engine(str(path("deepseek-v3")), speculative_config=MTP, additional_config=extra, **OPTIONS) as llm:
            answers = ask(llm)
            stats = lynx_vllm.stats()
        assert stats.verified is not None
        assert stats.drafter is not None
        found.append((answers, stats.verified, stats.steps, stats.layers, stats.drafter.layers))
    assert found[0] == found[1]
    print(f"accepted length {stats.verified['accepted_length']:.2f}: {stats.verified['accepted']}")
    assert stats.verified["accepted_length"] > 1.8
    assert stats.verified["remappable_rows"] > 0
    assert stats.shadows is not None
    assert stats.shadows["steps"] > 5
    assert any(one["kl"] > 0 for one in stats.shadows["batches"])


@pytest.mark.parametrize("kind", ["glm4_moe", "qwen3_next"])
def test_other_kinds_draft_beside_a_policy_and_exact_answers_are_plain_vllm_s(kind: str, tmp_path: Path) -> None:
    model = with_mtp(save_model(kind, tmp_path / "model"), tmp_path / "mtp")
    requests = prompts(8, seed=3, longest=20)
    given = {
        "speculative_config": MTP,
        "enable_prefix_caching": False,
    }  # with it plain vLLM asks for Triton on Qwen3-Next
    with engine(model, **given) as llm:
        plain = tokens(generate(llm, requests))
    extra = {"lynx_moe": {"policy": "oea:k0=1", "verify": "remap", "shadow": 0}}
    with engine(model, additional_config=extra, **given) as llm:
        assert tokens(generate(llm, requests, ["exact"])) == plain
        lynx_vllm.reset_stats()
        generate(llm, requests)
        stats = lynx_vllm.stats()
    assert stats.mean_after < stats.mean_before
    assert stats.verified is not None
    assert stats.verified["remappable_rows"] > 0
    assert stats.drafter is not None
    assert stats.drafter.mean_after == stats.drafter.mean_before > 0
    assert not {layer.name for layer in stats.layers} & {layer.name for layer in stats.drafter.layers}
