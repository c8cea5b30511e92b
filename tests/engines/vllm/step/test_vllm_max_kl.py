"""`max_kl` in a real engine on a trained model: the price that it comes to, measured by every step shadowed."""

import pytest
from places import MODELS
from tiny_vllm import engine, tokens

from lynx_moe.control import bound
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.vllm.step.plan import active
from lynx_moe.engines.vllm.step.shadows import follow
from lynx_moe.engines.vllm.step.shadows.sample import SERVER
from lynx_moe.lab.shared.documents import from_testbed

MODEL = str(MODELS / "qwen3-moe")
BATCH = 16


@pytest.fixture(autouse=True)
def _dense(monkeypatch):
    """Every step of a search is a shadow step, so the search is short."""
    monkeypatch.setattr(bound, "DENSE", 1.0)


@pytest.fixture(scope="module")
def prompts():
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    return {split: [list(each.prefix) for each in from_testbed(tokenizer, 112, 3, split)] for split in ("tune", "test")}


def serve(llm, prompts, count, wish=None, num_tokens=40):
    """So many requests, 16 at a time."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=num_tokens,
        ignore_eos=True,
        temperature=0,
        detokenize=False,
        extra_args=None if wish is None else {"lynx_moe": wish},
    )
    requests = [{"prompt_token_ids": prompts[number % len(prompts)]} for number in range(count)]
    return llm.generate(requests, params, use_tqdm=False)


def config(**options):
    return {"lynx_moe": {"policy": "priced", "shadow": 1, **options}}


def measured(prompts, llm):
    """KL and share of experts at the price that the bucket has come to, on other prompts, every step shadowed."""
    plan = active()
    price = plan.bounded.bound.of(BATCH).price
    lynx_vllm.set_policy(f"priced:price={price}")
    plan.bounded = None
    plan.shadows.sums.effects.clear()
    lynx_vllm.reset_stats()
    serve(llm, prompts["test"], 64)
    effect, stats = plan.shadows.sums.effects["9-16", SERVER], lynx_vllm.stats()
    return effect.kl / effect.rows, stats.mean_after / stats.mean_before


def test_the_price_rises_and_the_bound_holds_on_other_prompts(prompts):
    most = 0.01
    with engine(MODEL, additional_config=config(max_kl=most)) as llm:
        for _ in range(3):
            serve(llm, prompts["tune"], 64)
            if active().bounded.bound.of(BATCH).settled:
                break
        (state,) = [one for one in lynx_vllm.stats().bound["batches"] if one["batch"] == "9-16"]
        assert state["price"] > 0
        assert state["changes"]["raise"] > 0
        kl, kept = measured(prompts, llm)
    assert 0 < kl <= 1.5 * most  # of some thousand rows of other prompts, with a long tail
    assert kept < 0.95


def test_a_harmful_policy_serves_nobody_and_tokens_are_the_model_s_own(prompts):
    found = []
    for policy in ("vanilla", "random:num_keep=16"):
        options = {} if policy == "vanilla" else {"max_kl": 0.01}
        with engine(MODEL, additional_config={"lynx_moe": {"policy": policy, **options}}) as llm:
            found.append(tokens(serve(llm, prompts["tune"], 32)))
            bounded = lynx_vllm.stats().bound
    assert found[0] == found[1]
    assert {one["price"] for one in bounded["batches"]} == {0.0}
    assert sum(one["changes"]["raise"] for one in bounded["batches"]) == 0


def test_tiers_keep_their_ratio_and_exact_requests_stay_exact(prompts):
    with engine(MODEL, additional_config=config(max_kl=0.01)) as llm:
        plan = active()
        bucket = plan.bounded.bound.of(2)
        bucket.level = 20
        asked = []
        ask = plan.rows.ask
        plan.rows.ask = lambda price_T: (asked.append(price_T), ask(price_T))[1]
        from vllm import SamplingParams

        wishes = (None, 0.3)  # ten times the server's 0.03
        params = [
            SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False, extra_args=wish and {"lynx_moe": wish})
            for wish in wishes
        ]
        llm.generate([{"prompt_token_ids": prompts["test"][0]}] * 2, params, use_tqdm=False)
        own, more = next(prices for prices in asked if len(prices) == 2)
        assert own == pytest.approx(bucket.prices[20], rel=1e-5)
        assert more == pytest.approx(10 * own, rel=1e-5)


def test_another_policy_is_sought_anew_and_vanilla_ends_it():
    with engine(MODEL, additional_config=config(max_kl=0.01)):
        plan = active()
        first = plan.bounded
        lynx_vllm.set_policy("priced:price=0.2")
        assert plan.bounded is not first
        assert plan.bounded.asks == pytest.approx(0.2)
        lynx_vllm.set_policy("vanilla")
        assert plan.bounded is None
        assert lynx_vllm.stats().bound is None


def test_a_price_backs_off_where_it_harms_and_stays_where_it_does_not(prompts, monkeypatch):
    """Of three engines one is told a bound that nothing reaches: its tokens are the fixed price's."""
    policy, found, said = "priced:price=0.5", {}, []
    monkeypatch.setattr(follow.logger, "info", lambda text, *given: said.append(text % given))
    for name, most in (("fixed", None), ("loose", 1.0), ("tight", 0.001)):
        assert not any("back_off_kl" in line for line in said)
        options = {"policy": policy, "back_off_kl": most, "log_every": 0}
        with engine(MODEL, additional_config={"lynx_moe": options}) as llm:
            found[name] = tokens(serve(llm, prompts["tune"], 48)), active().bounded
            assert active().describe()["back_off_kl"] == most
            lynx_vllm.set_policy(policy)
            assert active().describe()["back_off_kl"] is None
            assert active().bounded is None  # whoever names a policy gets it as it is
    loose, tight = (found[name][1].bound.of(BATCH) for name in ("loose", "tight"))
    assert found["fixed"][1] is None
    assert found["loose"][0] == found["fixed"][0]
    assert (loose.price, loose.changes) == (0.5, {"raise": 0, "lower": 0})
    assert tight.price < 0.5
    assert any(line.startswith("lynx_moe: back_off_kl 0.001: steps of ") for line in said)
