"""Engines in which a model drafts: exact answers are plain vLLM's, in every way of verifying; steps that mix rows that
verify, rows that decode and prompts; preemption, structured output and abort.

The drafter is another testbed model of the same tokenizer, so some drafts are accepted and some are not.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drafters import eagle_head, with_mtp
from tiny_vllm import engine, tokens
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from lynx_moe.control import latency
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.shared.refusals import Refusal
from lynx_moe.engines.vllm.step.plan import Plan, active
from lynx_moe.engines.vllm.step.verified import PRIOR
from lynx_moe.testbed import path, tasks

POLICY = "oea:k0=2"
MODEL, SPECULATION = str(path("qwen3-moe")), {"method": "draft_model", "num_speculative_tokens": 3}
OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False}
OPTIONS |= {"max_num_batched_tokens": 96, "max_num_seqs": 16}
SHORT = [item.prompt for task in list(tasks.TASKS)[:8] for item in tasks.test_items(task, 2, seed=3)]
LONG = {"prompt_token_ids": [5 + i % 90 for i in range(492)]}  # its last tokens leave no room for a draft
PROMPTS = [*SHORT, LONG]
EXACT = {"lynx_moe": "exact"}
MARGIN = 0.3  # nats between the first two tokens, above which no rounding of a batch decides
SHAPED = [2, 5, 8]  # requests whose drafts a grammar shortens


def drafting(verify: str | None = None, policy: str = POLICY, **given: Any) -> Any:
    speculation = {**SPECULATION, "model": str(path("olmoe"))}
    extra = {} if verify is None else {"additional_config": {"lynx_moe": {"policy": policy, "verify": verify}}}
    return engine(MODEL, speculative_config=speculation, **{**OPTIONS, **extra, **given})


def ask(llm: Any, wishes: Any = (None,), shaped: Any = (), prompts: Any = PROMPTS, **params: Any) -> list[Any]:
    """Greedy answers; the requests ask for the wishes in turn, and some must match a pattern."""
    llm.reset_prefix_cache()
    asked = []
    for number in range(len(prompts)):
        wish = wishes[number % len(wishes)]
        form = StructuredOutputsParams(regex="[ab]{12}") if number in shaped else None
        asked.append(
            SamplingParams(temperature=0, max_tokens=24, logprobs=2, extra_args=wish, structured_outputs=form, **params)
        )
    return list(llm.generate(prompts, asked, use_tqdm=False))


def agree(got: list[Any], plain: list[Any]) -> int:
    """How many tokens were compared: those before the first that rounding could decide."""
    compared = 0
    for mine, other in zip(got, plain, strict=True):
        sure = 0
        for chances in other.outputs[0].logprobs:
            first, second = sorted((one.logprob for one in chances.values()), reverse=True)[:2]
            if first - second < MARGIN:
                break
            sure += 1
        assert list(mine.outputs[0].token_ids)[:sure] == list(other.outputs[0].token_ids)[:sure]
        compared += sure
    return compared


@pytest.fixture(scope="module")
def plain() -> dict[str, list[Any]]:
    """vLLM's answers: without drafts, with them, and with a grammar for some."""
    with engine(MODEL, **OPTIONS) as llm:
        found = {"alone": ask(llm)}
    with drafting() as llm:
        return {**found, "drafts": ask(llm), "short": ask(llm, prompts=SHORT), "shaped": ask(llm, shaped=SHAPED)}


@pytest.fixture(scope="module", params=["exact", "remap"])
def llm(request: Any, plain: Any) -> Iterator[Any]:
    with drafting(request.param) as made:
        yield made


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of the target's layers and steps: rows whose experts changed, by what they did; and how the steps were made."""
    seen: Counter[str] = Counter()
    decide, begin = Plan.reroute, Plan.begin_step

    def begin_step(plan: Plan) -> None:
        begin(plan)
        rows = plan.rows
        if not plan.drafts and rows.kind is not Kind.IDLE:
            others = rows.num_rows - rows.num_verify_rows
            seen["steps that verify and do more"] += rows.num_verify_rows > 0 and others > 0
            seen[f"{rows.kind.value} steps"] += 1

    def reroute(plan: Plan, logits: Any, weights: Any, ids: Any, layer: int, *more: Any) -> Any:
        final = decide(plan, logits, weights, ids, layer, *more)
        if final is not None and not plan.drafts:
            changed_T = (final.ids != ids).any(-1)
            remap_T, depth_T = plan.rows.remap[: len(ids)], plan.rows.depth[: len(ids)]
            assert not (changed_T & ~remap_T).any()
            deep_T = depth_T > 0 if plan.rows.drafted else torch.zeros_like(remap_T)
            seen["drafted rows changed"] += int((changed_T & deep_T).sum())
            seen["other rows changed"] += int((changed_T & ~deep_T).sum())
        return final

    monkeypatch.setattr(Plan, "begin_step", begin_step)
    monkeypatch.setattr(Plan, "reroute", reroute)
    return seen


def test_exact_answers_are_plain_vllm_s(plain: Any, llm: Any, moved: Counter[str]) -> None:
    """Under exact verification these requests' steps are plain vLLM's, bit for bit; where no draft fits any more they
    decode."""
    lynx_vllm.reset_stats()
    verify = active().options.verify
    expected, wishes = plain["drafts"], [EXACT, {"lynx_moe_verify": "exact"}]
    if verify == "exact":  # nobody asks for anything, and nobody decodes
        expected, wishes = plain["short"], [None]
    got = ask(llm, wishes, prompts=PROMPTS[: len(expected)])
    assert tokens(got) == tokens(expected)
    assert [o.outputs[0].logprobs for o in got] == [o.outputs[0].logprobs for o in expected]
    told = lynx_vllm.stats().verified
    assert told is not None
    print(f"accepted length {told['accepted_length']:.2f}: {told['accepted']} of {told['drafted']}")
    assert told["rows"] > 0
    assert told["remappable_rows"] == 0
    assert 0 < sum(told["accepted"]) < sum(told["drafted"])
    assert sorted(told["accepted"], reverse=True) == told["accepted"]
    chances = active().verified.chances
    assert chances[0] == 1
    assert PRIOR < chances[1] < 1  # a drafter that knows the tasks
    assert moved["drafted rows changed"] == 0


def test_a_drafter_s_layers_keep_their_routing_and_are_counted_apart(llm: Any) -> None:
    lynx_vllm.reset_stats()
    ask(llm)
    stats = lynx_vllm.stats()
    drafter = stats.drafter
    assert drafter is not None
    assert len(drafter.layers) == 4
    assert drafter.mean_before == drafter.mean_after > 0
    assert drafter.steps["decode"] > stats.steps["decode"] * (active().options.verify == "remap")
    assert {layer.name.split(".")[0] for layer in drafter.layers} == {"draft_model"}
    assert not any(layer.name.startswith("draft_model") for layer in stats.layers)


def test_only_what_may_be_is_remapped_in_mixed_steps(plain: Any, llm: Any, moved: Counter[str]) -> None:
    """Requests with a grammar lose drafts and decode; prompts come in chunks; every third request is exact."""
    lynx_vllm.reset_stats()
    got = ask(llm, [EXACT, None, {"lynx_moe_verify": "remap"}], shaped=SHAPED)
    assert moved["mixed steps"] > 0
    assert moved["steps that verify and do more"] > 0
    assert moved["other rows changed"] > 0
    assert moved["drafted rows changed"] > 0  # the last third asks for it, on either server
    told = lynx_vllm.stats().verified
    assert told is not None
    assert 0 < told["remappable_rows"] < told["rows"]
    assert agree(got[::3], plain["shaped"][::3]) > 40
    for number in SHAPED:
        assert re.fullmatch("[ab]{1,12}", got[number].outputs[0].text)


def test_an_aborted_request_leaves_the_others_alone(plain: Any, llm: Any) -> None:
    core, done = llm.llm_engine, {}
    llm.reset_prefix_cache()
    for number, prompt in enumerate(SHORT[:6]):
        wish = (EXACT, {"lynx_moe_verify": "remap"})[number % 2]
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, extra_args=wish)
        core.add_request(str(number), prompt, params)
    for _ in range(4):
        core.step()
    core.abort_request(["1", "4"])
    while core.has_unfinished_requests():
        done.update({out.request_id: out for out in core.step() if out.finished})
    assert set(done) == {"0", "2", "3", "5"}
    assert agree([done["0"], done["2"]], [plain["drafts"][0], plain["drafts"][2]]) > 3
    ask(llm)
    assert active().requests.verify == {} == active().requests.specs


def test_preempted_requests_verify_again_as_they_asked(plain: Any, moved: Counter[str]) -> None:
    with drafting("remap", num_gpu_blocks_override=18, block_size=32, max_model_len=256) as llm:
        scheduler, preempted = llm.llm_engine.engine_core.engine_core.scheduler, []
        own = scheduler._preempt_request

        def preempt(request: Any, *args: Any, **given: Any) -> Any:
            preempted.append(request)
            return own(request, *args, **given)

        scheduler._preempt_request = preempt
        got = ask(llm, [EXACT, None], prompts=SHORT, ignore_eos=True)
        assert preempted
        assert moved["drafted rows changed"] > 0
    assert agree(got[::2], plain["alone"][: len(SHORT) : 2]) > 40


def test_draft_mode_remaps_the_drafter_alone_and_loses_nothing(plain: Any, moved: Counter[str]) -> None:
    with drafting("draft", "topk:k=2") as llm:
        lynx_vllm.reset_stats()
        got = ask(llm)
        stats = lynx_vllm.stats()
        assert stats.drafter is not None
        assert stats.verified is not None
        print(
            f"accepted length {stats.verified['accepted_length']:.2f}, drafter {stats.drafter.mean_after:.1f} experts"
        )
        assert stats.mean_before == stats.mean_after
        assert stats.drafter.mean_after < 0.8 * stats.drafter.mean_before
        assert moved["drafted rows changed"] + moved["other rows changed"] == 0
        lynx_vllm.set_policy("vanilla")  # of the drafter
        lynx_vllm.reset_stats()
        assert tokens(ask(llm)) == tokens(plain["drafts"])
    for answers in (plain["alone"], plain["drafts"]):
        assert agree(got, answers) > 100


@pytest.mark.parametrize("method", ["mtp", "eagle", "eagle3"])
def test_heads_that_read_the_target_s_hidden_states(method: str, tmp_path: Path) -> None:
    """An MTP layer has experts and is counted; these heads have none, so nothing is counted, nor could be remapped.
    Without AMX vLLM computes latent attention's prompts whole: a longer one than a step has room for waits forever."""
    speculation: dict[str, Any] = {"method": method, "num_speculative_tokens": 2}
    if method == "mtp":
        model = with_mtp(str(path("deepseek-v3")), tmp_path / "mtp")
    else:
        model = MODEL
        speculation["model"] = eagle_head(MODEL, tmp_path / "head", kind=method)
    given = {**OPTIONS, "speculative_config": speculation}
    with engine(model, **given) as llm:
        expected = ask(llm, prompts=SHORT)
    with engine(model, POLICY, **given) as llm:
        assert tokens(ask(llm, prompts=SHORT)) == tokens(expected)
        stats = lynx_vllm.stats()
        assert stats.verified is not None
        assert stats.verified["rows"] > 0
        assert (stats.drafter is not None) == (method == "mtp")
    extra = {"lynx_moe": {"policy": "topk:k=2", "verify": "draft"}}
    if method == "mtp":
        with engine(model, additional_config=extra, **given) as llm:
            assert agree(ask(llm, prompts=SHORT), expected) > 40
            drafter = lynx_vllm.stats().drafter
            assert drafter is not None
            assert drafter.mean_after < drafter.mean_before
    else:
        with pytest.raises(Refusal, match="drafts, and has no MoE layer to remap") as caught:
            engine(model, additional_config=extra, **given).__enter__()
        assert "\n" not in str(caught.value)


def test_what_moves_the_prices_is_the_served_model_s_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A latency objective that no step can meet: the target's rows ask, the drafter's layers keep their routing."""
    monkeypatch.setattr(latency, "WINDOW", 2)  # steps: answers are short
    options = {"policy": "priced", "verify": "remap", "slo_tpot_ms": 1e-3, "shadow": 0}
    with drafting(additional_config={"lynx_moe": options}) as llm:
        ask(llm, prompts=SHORT)
        stats = lynx_vllm.stats()
        assert active().drafter.pace is None
    assert any(one["step_ms"] for one in stats.pace["batches"])
    assert max(one["share"] for one in stats.pace["batches"]) > 0
    assert stats.drafter.mean_after == stats.drafter.mean_before
