"""Tuned settings in a real engine: the size of the batch says which policy decides, step by step."""

import pytest
from places import MODELS
from tiny_vllm import engine, tokens

from lynx_moe.control.tuned import KEY
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.tell.samples import samples

MODEL = str(MODELS / "qwen3-moe")
BATCHES = {"1": "vanilla", "2-4": "priced:price=0.5", "9-16": "xshare:budget=20"}


def config(batches=BATCHES, **options):
    tuned = {KEY: 1, "model": {}, "max_kl": 0.01, "batches": batches}
    return {"lynx_moe": {"tuned": tuned, "shadow": 0, "log_every": 0, **options}}


def serve(llm, count, wishes=None, num_tokens=6):
    """So many requests that begin and end together: every step but the prompts' has as many rows."""
    from vllm import SamplingParams

    wishes = wishes or [None] * count
    params = [
        SamplingParams(
            max_tokens=num_tokens,
            ignore_eos=True,
            temperature=0,
            detokenize=False,
            extra_args=None if wish is None else {"lynx_moe": wish},
        )
        for wish in wishes
    ]
    prompts = [{"prompt_token_ids": [5 + number, 9, 7, 30, 8]} for number in range(count)]
    return llm.generate(prompts, params, use_tqdm=False)


def acted():
    return {one["batch"]: (one["policy"], one["steps"]) for one in lynx_vllm.stats().tuned["batches"] if one["steps"]}


@pytest.mark.parametrize("eager", [True, False])
def test_each_size_is_decided_as_if_its_policy_were_the_server_s(eager):
    sizes = (1, 3, 6, 16)
    own = dict(zip(sizes, ("vanilla", "priced:price=0.5", "vanilla", "xshare:budget=20"), strict=True))
    with engine(MODEL, "vanilla", enforce_eager=eager) as llm:
        expected = {}
        for size in sizes:
            lynx_vllm.set_policy(own[size])
            lynx_vllm.reset_stats()
            outputs = serve(llm, size)
            expected[size] = (tokens(outputs), lynx_vllm.stats().layers)
    with engine(MODEL, additional_config=config(), enforce_eager=eager) as llm:
        for size in (*sizes, *reversed(sizes)):
            lynx_vllm.reset_stats()
            outputs = serve(llm, size)
            assert (tokens(outputs), lynx_vllm.stats().layers) == expected[size], size
            assert active().policy.spec == own[size]
        stats = lynx_vllm.stats()
        assert stats.policy == "tuned"
        assert acted() == {
            "1": ("vanilla", 10),
            "2-4": ("priced:price=0.5", 10),
            "5-8": ("vanilla", 10),  # two policies stand beside it
            "9-16": ("xshare:budget=20", 10),
        }
        told = {(name, *labels): value for name, labels, value in samples(active())}
        assert told["lynx_moe_tuned_steps", "9-16", "xshare:budget=20"] == 10
        assert told["lynx_moe_policy_info", "tuned", "tuned"] == 1
        assert active().describe()["tuned"] == stats.tuned
    differing = sum(expected[3][0][place] != expected[16][0][place] for place in range(3))
    assert expected[3][1] != expected[16][1] or differing  # the policies are told apart at all


def test_exact_requests_are_not_of_the_batch_and_those_of_another_price_are():
    with engine(MODEL, additional_config=config()) as llm:
        serve(llm, 16, ["exact"] * 13 + [None] * 3)
        assert acted() == {"2-4": ("priced:price=0.5", 5)}
        serve(llm, 16, [0.2] * 8 + ["oea:k0=4"] * 4 + [None] * 4)
        assert acted() == {"2-4": ("priced:price=0.5", 5), "9-16": ("xshare:budget=20", 5)}
        alone = tokens(serve(llm, 1))
        assert tokens(serve(llm, 4, ["exact"] + [None] * 3))[0] == tokens(serve(llm, 4, ["exact"] * 4))[0]
        assert alone


def test_who_switches_the_policy_ends_it():
    with engine(MODEL, additional_config=config()) as llm:
        lynx_vllm.set_policy("priced:price=0.2")
        serve(llm, 16)
        stats = lynx_vllm.stats()
        assert (stats.policy, stats.tuned) == ("priced:price=0.2", None)


def test_drafts_that_may_be_remapped_are_of_the_batch():
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    seen = {}
    for verify in ("exact", "remap"):
        with engine(MODEL, additional_config=config(verify=verify), speculative_config=drafts) as llm:
            serve(llm, 3, num_tokens=40)
            seen[verify] = acted()
            assert lynx_vllm.stats().verified["drafts"] > 0
    assert set(seen["exact"]) <= {"1", "2-4"}
    assert set(seen["remap"]) - {"1", "2-4"}  # three requests, up to twelve rows


def test_a_setting_that_fits_no_layer_is_refused_before_weights_load():
    with (
        pytest.raises(Refusal, match=r"^lynx_moe: .*oea"),
        engine(MODEL, additional_config=config({"1": "priced", "2-4": "oea:k0=80"})),
    ):
        pass
