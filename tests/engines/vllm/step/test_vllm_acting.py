"""At which batch sizes the policy acts: elsewhere a step is plain vLLM's, bit for bit."""

import pytest
from places import MODELS
from tiny_vllm import engine, tokens

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import active

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


@pytest.mark.parametrize("eager", [True, False])
def test_outside_of_the_range_steps_are_the_model_s_own_and_inside_as_ever(eager):
    sizes = (1, 3, 4, 6, 7, 12)
    with engine(MODEL, "vanilla", enforce_eager=eager) as llm:
        plain = {size: serve(llm, size) for size in sizes}
        lynx_vllm.set_policy(POLICY)
        acting = {size: serve(llm, size) for size in sizes}
    ours = {"lynx_moe": {"policy": POLICY, "act_from": 4, "act_to": 6, "shadow": 0, "log_every": 0}}
    with engine(MODEL, additional_config=ours, enforce_eager=eager) as llm:
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
        told = active().describe()
        assert (told["act_from"], told["act_to"]) == (4, 6)
    assert any(acting[size] != plain[size] for size in (4, 6))  # else the policy is not told from none
