"""Per-request policies and the prefix cache on a real engine: a trained model, chunked prompts, preemption, mixed load.

On this build a row's result does not depend on what the other rows of its step are, so an exact request's logits are
those of plain vLLM bit for bit where both engines make the same steps, as here.
"""

from typing import Any

import pytest
from asking import BLOCK, ITEMS, POLICY, WILD, ask, logprobs, remapped_blocks, turns
from tiny_vllm import engine, tokens

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step import cache
from lynx_moe.testbed import path

OPTIONS = {
    "max_num_batched_tokens": 64,
    "block_size": BLOCK,
    "num_gpu_blocks_override": 24,  # too few for 16 requests: some are preempted
    "max_model_len": 512,
    "enable_prefix_caching": True,
    "dtype": "auto",
    "disable_log_stats": False,
}
MODES = ("exact", None, "fast", "random:num_keep=16", "exact", "balanced")


@pytest.fixture(scope="module")
def plain() -> Any:
    """What plain vLLM answers: tokens, and the log-probabilities of the two likeliest at each place."""
    with engine(str(path("qwen3-moe")), skip_tokenizer_init=False, **OPTIONS) as llm:
        outputs = ask(llm, [None] * len(ITEMS))
        assert preemptions(llm) > 0
        return outputs


@pytest.fixture(scope="module")
def llm(plain: Any) -> Any:
    with engine(str(path("qwen3-moe")), POLICY, skip_tokenizer_init=False, **OPTIONS) as llm:
        yield llm


@pytest.fixture
def fresh(llm: Any) -> Any:
    lynx_vllm.set_policy(POLICY)
    llm.reset_prefix_cache()
    lynx_vllm.reset_stats()
    return llm


def preemptions(llm: Any) -> float:
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")


def test_exact_requests_are_plain_vllm_s_bit_for_bit_among_all_kinds_of_neighbours(plain: Any, fresh: Any) -> None:
    modes = [MODES[i % len(MODES)] for i in range(len(ITEMS))]
    before = preemptions(fresh)
    outputs = ask(fresh, modes)
    assert preemptions(fresh) > before
    exact = [i for i, mode in enumerate(modes) if mode == "exact"]
    assert [tokens([outputs[i]]) for i in exact] == [tokens([plain[i]]) for i in exact]
    assert [logprobs(outputs[i]) for i in exact] == [logprobs(plain[i]) for i in exact]
    stats = lynx_vllm.stats()
    assert stats.steps["mixed"] > 5
    assert stats.mean_after < 0.95 * stats.mean_before


def test_a_server_that_is_vanilla_remaps_those_who_ask_for_it(plain: Any, fresh: Any) -> None:
    lynx_vllm.set_policy("vanilla")
    outputs = ask(fresh, [(None, POLICY)[i % 2] for i in range(len(ITEMS))])
    assert tokens(outputs[::2]) == tokens(plain[::2])
    assert lynx_vllm.stats().mean_after < lynx_vllm.stats().mean_before


def test_a_bad_wish_is_refused_and_the_engine_goes_on(plain: Any, fresh: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown policy 'quick'.*allowed: exact, balanced, fast"):
        ask(fresh, ["exact", "quick"], prompts=[ITEMS[0].prompt, ITEMS[1].prompt])
    assert tokens(ask(fresh, ["exact"], prompts=[ITEMS[0].prompt])) == tokens(plain[:1])


def test_switching_is_all_or_nothing(fresh: Any) -> None:
    for spec, reason in (
        ("linx", "did you mean 'lynx'"),
        ("oea:k0=99", r"more than .* top_k=8.*\(layer "),
        (3, "spec string.*not by 3"),
    ):
        with pytest.raises(lynx_vllm.Refused, match=reason):
            lynx_vllm.switch(fresh, spec)
        assert fresh.collective_rpc("lynx_policy")[0]["policy"] == POLICY
    with pytest.raises(lynx_vllm.Refused, match=r"without shadow steps .shadow=0. nothing measures it"):
        lynx_vllm.switch(fresh, slo_tpot_ms=50, max_kl=0.01)
    assert lynx_vllm.stats().pace is None
    assert lynx_vllm.switch(fresh, slo_tpot_ms=50) == POLICY
    assert lynx_vllm.stats().pace["slo_tpot_ms"] == 50
    with pytest.raises(lynx_vllm.Refused, match="'slo' cannot be changed"):
        lynx_vllm.switch(fresh, slo=50)
    assert lynx_vllm.switch(fresh, "oea:k0=2", slo_tpot_ms=None, max_kl=None) == "oea:k0=2"
    told = fresh.collective_rpc("lynx_policy")[0]
    assert isinstance(told.pop("prices"), dict)  # of the last step, whichever test took it
    assert told == {
        "policy": "oea:k0=2",
        "max_kl": None,
        "slo_tpot_ms": None,
        "back_off_kl": None,
        "verify": "exact",
        "tuned": None,
        "act_from": 1,
        "act_to": None,
        "presets": {"balanced": "oea:k0=2", "fast": "priced:price=0.1"},
        "switchable": True,
        "recorded": None,
    }


def test_what_was_generated_under_remapping_is_never_shared_and_prompts_are(fresh: Any) -> None:
    """The first turn's prompt fills one block (of 32), its answer most of the next two."""
    for first, second in ((None, "exact"), (WILD, "exact"), ("random:num_keep=16", None), (None, None)):
        fresh.reset_prefix_cache()
        cached, prompt = turns(fresh, first, second)
        assert cached == BLOCK
        if second == "exact":
            assert remapped_blocks(fresh, prompt) == (3 * BLOCK, [False] * 3)  # what the second turn has written


def test_what_exact_requests_generate_is_shared_with_all(fresh: Any) -> None:
    for second in ("exact", None, "fast"):
        fresh.reset_prefix_cache()
        assert turns(fresh, "exact", second)[0] == 3 * BLOCK


def test_without_the_word_in_its_hash_remapped_kv_would_be_shared(fresh: Any, monkeypatch: Any) -> None:
    """What the tests above would not notice without: the same two turns hit, and the exact request reads it."""
    monkeypatch.setattr(cache, "_mark", lambda *_: None)
    cached, prompt = turns(fresh, WILD, "exact")
    assert cached == 3 * BLOCK
    assert remapped_blocks(fresh, prompt) == (3 * BLOCK, [False, True, True])


def test_a_server_that_never_remapped_shares_everything_until_it_is_switched(fresh: Any) -> None:
    lynx_vllm.set_policy("vanilla")
    (core,) = [core for core in cache._may_remap if cache._may_remap[core]]
    cache._may_remap[core] = False  # as in an engine that was started so
    assert turns(fresh, None, "exact")[0] == 3 * BLOCK
    fresh.reset_prefix_cache()
    llm = fresh.llm_engine
    from vllm import SamplingParams

    prompt, params = list(range(5, 45)), SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    llm.add_request("first", {"prompt_token_ids": prompt}, params)
    for _ in range(24):  # 23 tokens are computed, and the 24th, which fills the second block, is not
        llm.step()
    lynx_vllm.set_policy(POLICY)
    generated: list[int] = []
    while llm.has_unfinished_requests():
        generated = next(list(out.outputs[0].token_ids) for out in llm.step())
    (answer,) = ask(fresh, ["exact"], prompts=[{"prompt_token_ids": [*prompt, *generated]}])
    assert answer.num_cached_tokens == BLOCK
