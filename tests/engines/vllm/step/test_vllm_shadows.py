"""Shadow steps in real vLLM engines: what they measure, and that they leave no trace."""

import pytest
import torch
from tiny_vllm import engine, generate, prompts, runner_of, save_model, tokens

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import active

HARSH = "random:num_keep=8"
REQUESTS = prompts(24, seed=3)
WISHES = (None, None, "exact", "0.3")
HOW = {
    "eager": {},
    "chunked prefill": {"max_num_batched_tokens": 48},
    "compiled": {"enforce_eager": False},
    "prefix caching": {"enable_prefix_caching": True, "block_size": 32},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


def options(shadow=None, policy="priced:price=0.1", **more):
    return {"lynx_moe": {"policy": policy, **({} if shadow is None else {"shadow": shadow}), **more}}


def counts(stats):
    """What must not notice that a step ran twice."""
    return stats.steps, stats.layers


@pytest.mark.parametrize("how", HOW)
def test_every_step_run_twice_gives_the_same_tokens_and_the_same_counts(model, how):
    found = []
    for shadow in (0, 1):
        with engine(model, **HOW[how], additional_config=options(shadow)) as llm:
            lynx_vllm.reset_stats()
            outputs = [tokens(generate(llm, REQUESTS, WISHES, logprobs=3)) for _ in range(2)]
            found.append((outputs, counts(lynx_vllm.stats())))
            told = lynx_vllm.stats().shadows
    assert found[0] == found[1]
    assert told["steps"] > 30
    assert {one["policy"] for one in told["batches"]} == {"server", "request"}
    assert all(one["kl"] > 0 for one in told["batches"] if one["batch"] == "9-16")


def test_exact_requests_are_those_of_plain_vllm_bit_for_bit(model):
    """Alone in their steps, so that no neighbour's rows change how sums are rounded."""
    with engine(model) as llm:
        plain = generate(llm, REQUESTS[:8], logprobs=5)
    with engine(model, additional_config=options(1, HARSH)) as llm:
        exact = generate(llm, REQUESTS[:8], ["exact"], logprobs=5)
        generate(llm, REQUESTS[8:])
        assert lynx_vllm.stats().shadows["steps"] > 0
        llm.reset_prefix_cache()
        again = generate(llm, REQUESTS[:8], ["exact"], logprobs=5)
    for one in (exact, again):
        assert tokens(one) == tokens(plain)
        for mine, theirs in zip(one, plain, strict=True):
            assert mine.outputs[0].cumulative_logprob == theirs.outputs[0].cumulative_logprob


def test_what_comes_out_of_the_cache_was_written_by_the_pass_that_stays(model):
    """The KV of every layer, where all steps ran twice and where none did."""
    caches = []
    for shadow in (0, 1):
        with engine(model, additional_config=options(shadow, HARSH)) as llm:
            generate(llm, REQUESTS[:12])
            caches.append([cache.clone() for cache in runner_of(llm).kv_caches])
    assert all(torch.equal(a, b) for a, b in zip(*caches, strict=True))
    assert any(cache.float().abs().sum() > 0 for cache in caches[0])


def preempting(model, shadow):
    """Tokens of requests for which the cache is too small, and how often one had to make room."""
    from vllm import SamplingParams

    small = {"num_gpu_blocks_override": 10, "block_size": 32, "disable_log_stats": False}
    with engine(model, **small, additional_config=options(shadow)) as llm:
        params = [
            SamplingParams(
                max_tokens=70,
                temperature=0,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if wish is None else {"lynx_moe": wish},
            )
            for wish in WISHES * 3
        ]
        outputs = llm.generate(prompts(12, seed=9, longest=30), params, use_tqdm=False)
        preempted = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    return tokens(outputs), preempted


def test_a_shadow_step_survives_preemption(model):
    without, shadowed = (preempting(model, shadow) for shadow in (0, 1))
    assert without == shadowed
    assert shadowed[1] > 0


@pytest.mark.parametrize("verify", ["exact", "remap"])
def test_drafts_are_verified_as_without_shadows(model, verify):
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    requests = [{"prompt_token_ids": one["prompt_token_ids"][:6] * 4} for one in REQUESTS[:10]]
    found = []
    for shadow in (0, 1):
        extra = options(shadow, verify=verify)
        with engine(model, speculative_config=ngram, additional_config=extra) as llm:
            outputs = tokens(generate(llm, requests, WISHES))
            stats = lynx_vllm.stats()
            found.append((outputs, counts(stats), stats.verified))
    assert found[0] == found[1]
    assert found[1][2]["rows"] > 0
    assert stats.shadows["steps"] > 5


def test_the_sampled_share_follows_from_the_number_of_the_step(model):
    with engine(model, additional_config=options(1 / 8)) as llm:
        generate(llm, REQUESTS)
        shadows = active().shadows
        assert shadows.sums.steps in (shadows.step // 8, shadows.step // 8 - 1)  # the last one may be under way
        assert shadows.sums.steps > 2
