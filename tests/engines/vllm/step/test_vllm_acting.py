"""At which batch sizes the policy acts: elsewhere a step is plain vLLM's, bit for bit."""

from dataclasses import replace

import pytest
from places import MODELS
from tiny_vllm import engine, tokens

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.shadows.gain import ENOUGH, Gains
from lynx_moe.engines.vllm.step.shadows.sample import Effect, Sample

MODEL = str(MODELS / "qwen3-moe")
POLICY = "priced:price=0.5"


def serve(llm, count, wishes=None):
    """(tokens, log-probabilities) of so many requests that begin and end together."""
    from vllm import SamplingParams

    extra = [None if wish is None else {"lynx_moe": wish} for wish in wishes or [None] * count]
    params = [
        SamplingParams(max_tokens=8, ignore_eos=True, temperature=0, detokenize=False, logprobs=0, extra_args=one)
        for one in extra
    ]
    prompts = [{"prompt_token_ids": [5 + number, 9, 7, 30, 8]} for number in range(count)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    chances = [[[one.logprob for one in step.values()] for step in out.outputs[0].logprobs] for out in outputs]
    return tokens(outputs), chances


def counted(llm, count, wishes=None):
    """What `serve` gives, and whether any step of it loaded fewer experts."""
    lynx_vllm.reset_stats()
    found = serve(llm, count, wishes)
    stats = lynx_vllm.stats()
    return found, stats.mean_after < stats.mean_before


def test_outside_of_the_range_steps_are_the_model_s_own_and_inside_as_ever():
    sizes = (1, 3, 4, 6, 7, 12)
    with engine(MODEL, "vanilla", enforce_eager=True) as llm:
        plain = {size: serve(llm, size) for size in sizes}
        lynx_vllm.set_policy(POLICY)
        acting = {size: serve(llm, size) for size in sizes}
    ours = {"lynx_moe": {"policy": POLICY, "act_from": 4, "act_to": 6, "shadow": 1, "log_every": 0}}
    with engine(MODEL, additional_config=ours, enforce_eager=True) as llm:
        for size in sizes:
            found, fewer = counted(llm, size)
            inside = 4 <= size <= 6
            assert fewer == inside, size
            assert found == (acting if inside else plain)[size], size
        wished, fewer = counted(llm, 3, ["fast", "oea:k0=2", None])  # whatever requests ask: the batch gains nothing
        assert not fewer
        assert wished == plain[3]
        mixed, fewer = counted(llm, 7, ["exact"] * 3 + [None] * 4)  # four rows may be remapped
        assert fewer
        assert [part[:3] for part in mixed] == [part[:3] for part in plain[7]]
        gains = lynx_vllm.stats().shadows["gains"]
        assert [gain["batch"] for gain in gains] == ["2-4", "5-8"]
        assert all(min(gain["steps"], gain["ms"], gain["exact_ms"], gain["ratio"]) > 0 for gain in gains)
        told = active().describe()
        assert (told["act_from"], told["act_to"]) == (4, 6)
    assert any(acting[size] != plain[size] for size in (4, 6))  # else the policy is not told from none


def sample(batch, exact, policy):
    return Sample(
        batch=batch, at=None, server=Effect(), request=Effect(), above=None, seconds=0.0, passes=(exact, policy)
    )


def test_the_gain_on_own_steps_is_said_once_for_each_bucket():
    gains = Gains()
    lines = [gains.add(sample(16, 0.030, 0.020)) for _ in range(ENOUGH + 5)]
    assert [line for line in lines if line] == [
        "lynx_moe: steps of 9-16 rows take 20.0 ms by the policy, 30.0 ms exactly (1.50 times, 16 shadow steps)"
    ]
    assert lines[ENOUGH - 1]
    lines = [gains.add(sample(1, 0.0101, 0.010)) for _ in range(ENOUGH)]
    assert lines[-1].endswith(
        "(1.01 times, 16 shadow steps); it does not pay there, and act_from, act_to leave such steps exact"
    )
    assert gains.add(replace(sample(64, 1.0, 1.0), passes=None)) is None  # a GPU's host does not wait
    assert [(one["batch"], one["steps"]) for one in gains.state()] == [("1", ENOUGH), ("9-16", ENOUGH)]
    for _ in range(ENOUGH):  # the newest ones count
        gains.add(sample(16, 0.030, 0.030))
    assert gains.state()[1]["ratio"] == pytest.approx(1.0)
