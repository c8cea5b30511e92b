"""vLLM's features under a policy: an exact request that uses one gets plain vLLM's answer among remapped neighbours,
and a remapped one gets an answer of the form that it asked for. docs/reference/features.md has the table."""

import re
from typing import Any

import pytest
from tiny_vllm import engine
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.testbed import path, tasks

POLICY = "lynx:alpha=0.3,beta=1"
OPTIONS = {"max_num_batched_tokens": 64, "max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False}
PROMPTS = [tasks.test_items(task, 1, seed=3)[0].prompt for task in list(tasks.TASKS)[:6]]
LONG = {"prompt_token_ids": [5 + i % 90 for i in range(480)]}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FEATURES: dict[str, dict[str, Any]] = {
    "n": {"n": 3, "temperature": 1.0, "seed": 7},
    "stop strings": {"stop": ["e", "a"], "include_stop_str_in_output": True},
    "regex": {"structured_outputs": StructuredOutputsParams(regex="[ab]{6}"), "ignore_eos": False},
    "JSON schema": {"structured_outputs": StructuredOutputsParams(json=SCHEMA), "ignore_eos": False},
    "prompt_logprobs": {"prompt_logprobs": 2},
    "sampling": {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "seed": 3, "repetition_penalty": 1.2},
    "bad words": {"bad_words": ["e"], "min_tokens": 5},
    "long prompt": {"max_tokens": 31},
}


def answers(llm: Any, feature: str, mode: str | None) -> list[Any]:
    """What a request that uses the feature gets beside five neighbours that do not: everything that was asked for."""
    llm.reset_prefix_cache()  # so that both engines make the same steps
    basic = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 1}
    asked = SamplingParams(**{**basic, **FEATURES[feature]}, extra_args=mode and {"lynx_moe": mode})
    prompts = [LONG if feature == "long prompt" else PROMPTS[0], *PROMPTS[1:]]
    output = llm.generate(prompts, [asked] + [SamplingParams(**basic)] * 5, use_tqdm=False)[0]
    return [output.prompt_logprobs] + [
        (out.text, list(out.token_ids), out.finish_reason, out.stop_reason, out.logprobs) for out in output.outputs
    ]


@pytest.fixture(scope="module")
def plain() -> Any:
    with engine(str(path("qwen3-moe")), **OPTIONS) as llm:
        return {feature: answers(llm, feature, None) for feature in FEATURES}


@pytest.fixture(scope="module")
def llm(plain: Any) -> Any:
    with engine(str(path("qwen3-moe")), POLICY, **OPTIONS) as llm:
        yield llm


@pytest.fixture
def fresh(llm: Any) -> Any:
    lynx_vllm.reset_stats()
    return llm


@pytest.mark.parametrize("feature", FEATURES)
def test_an_exact_request_gets_plain_vllm_s_answer(plain: Any, fresh: Any, feature: str) -> None:
    assert answers(fresh, feature, "exact") == plain[feature]
    assert sum(layer.decode.changed_rows + layer.mixed.changed_rows for layer in lynx_vllm.stats().layers) > 0


@pytest.mark.parametrize("feature", FEATURES)
def test_a_remapped_request_gets_what_it_asked_for(plain: Any, fresh: Any, feature: str) -> None:
    prompt_logprobs, *outputs = answers(fresh, feature, "random:num_keep=16")
    texts = [text for text, *_ in outputs]
    assert prompt_logprobs == plain[feature][0]  # prompts are never remapped
    if feature == "n":
        assert len(outputs) == 3
    elif feature == "stop strings":
        assert all(out[2] == "length" or out[3] in ("e", "a") for out in outputs)
    elif feature == "regex":
        assert re.fullmatch("[ab]{6}", texts[0])
    elif feature == "JSON schema":
        assert re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', texts[0]) or outputs[0][2] == "length"
    elif feature == "bad words":
        assert fresh.get_tokenizer().encode("e", add_special_tokens=False)[-1] not in outputs[0][1]
    elif feature == "long prompt":
        assert len(outputs[0][1]) == 31
    assert all(out[1] for out in outputs)


def test_an_aborted_request_leaves_the_others_alone(plain: Any, fresh: Any) -> None:
    core, done = fresh.llm_engine, {}
    for number, prompt in enumerate(PROMPTS):
        mode = ("exact", "fast", POLICY)[number % 3]
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, extra_args={"lynx_moe": mode})
        core.add_request(str(number), prompt, params)
    for _ in range(8):
        core.step()
    core.abort_request(["1", "2", "3"])
    while core.has_unfinished_requests():
        done.update({out.request_id: list(out.outputs[0].token_ids) for out in core.step() if out.finished})
    assert set(done) == {"0", "4", "5"}
    exact = fresh.generate(PROMPTS[:1], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True), use_tqdm=False)
    assert done["0"] == list(exact[0].outputs[0].token_ids)  # alone, it is not remapped
    admission = core.__dict__["_lynx_moe_admission"]
    admission.check("oea:k0=2")
    assert admission.running == {}  # nothing of those that ended is counted
