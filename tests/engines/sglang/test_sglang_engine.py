"""SGLang's engine with a policy, on a CPU: what stays as it was, what is loaded, what the radix cache hands on."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sglang_here
from sglang_here import LENGTH, PROMPTS

from lynx_moe.engines import sglang as ours
from lynx_moe.engines.sglang.launch.options import VARIABLE
from lynx_moe.testbed import path

pytestmark = pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT)
Ids = list[list[int]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    patch.setenv(VARIABLE, json.dumps({"policy": "vanilla", "presets": {"gold": "priced:price=0.005"}}))
    import sglang

    made = sglang.Engine(
        model_path=str(path("qwen3-moe")), log_level="error", grammar_backend="none", **sglang_here.ARGUMENTS
    )
    yield made
    made.shutdown()
    patch.undo()


def ask(engine: Any, *wishes: Any, prompts: Any = None, length: int = LENGTH) -> Ids:
    """Token ids; each prompt's wish, or one for all."""
    prompts = PROMPTS if prompts is None else prompts
    each = list(wishes) * len(prompts) if len(wishes) == 1 else wishes or [None] * len(prompts)
    params = [
        {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
        | ({} if wish is None else {"custom_params": {"lynx_moe": wish}})
        for wish in each
    ]
    return [answer["output_ids"] for answer in engine.generate(prompts, params)]


def test_vanilla_is_plain_sglang_and_counts(engine: Any, plain: Ids) -> None:
    ours.reset_stats(engine)
    assert ask(engine) == plain
    stats = ours.describe(engine)["stats"]
    assert stats["steps"]["decode"] >= LENGTH - 2
    assert stats["mean_before"] == stats["mean_after"] > 8
    assert len(stats["layers"]) == 4
    assert not stats["bypassed_layers"]


def test_a_policy_loads_less_and_exact_requests_beside_it_are_plain(engine: Any, plain: Ids) -> None:
    assert ours.switch(engine, "lynx:alpha=3,beta=1") == "lynx:alpha=3,beta=1"
    ours.reset_stats(engine)
    changed = ask(engine)
    stats = ours.describe(engine)["stats"]
    assert stats["mean_after"] < 0.8 * stats["mean_before"]
    assert changed != plain
    wishes = ["exact", "fast", "gold", 0.05] * 3
    mixed = ask(engine, *wishes)
    assert [mixed[number] for number in (0, 4, 8)] == [plain[number] for number in (0, 4, 8)]
    assert ask(engine, "exact") == plain


def test_prices_are_each_request_s_own(engine: Any) -> None:
    ours.switch(engine, "priced")
    loads = []
    for price in (0.001, 0.03, 0.3):
        ours.reset_stats(engine)
        ask(engine, price)
        loads.append(ours.describe(engine)["stats"]["mean_after"])
    assert loads == sorted(loads, reverse=True)
    assert loads[2] < 0.8 * loads[0]


def test_what_is_no_policy_is_refused_and_changes_nothing(engine: Any) -> None:
    before = ours.describe(engine)["policy"]
    with pytest.raises(ours.Refused, match="unknown policy 'lynxx'"):
        ours.switch(engine, "lynxx")
    with pytest.raises(ours.Refused, match="k0=9"):
        ours.switch(engine, "oea:k0=9")
    assert ours.describe(engine)["policy"] == before
    with pytest.raises(ValueError, match="allowed: exact, balanced, fast, gold"):
        ask(engine, "nonsense", prompts=PROMPTS[:1])
    assert len(ask(engine, prompts=PROMPTS[:2])) == 2


def test_the_radix_cache_hands_remapped_kv_to_nobody(engine: Any) -> None:
    """A conversation goes on: its first answer was computed under remapping, and comes back as a prompt."""
    engine.flush_cache()
    ours.switch(engine, "vanilla")
    prompt = list(range(20, 60))
    first = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}

    def answers(wish: str, *prompts: list[int]) -> list[tuple[list[int], int]]:
        params = [first | {"custom_params": {"lynx_moe": wish}}] * len(prompts)
        found = engine.generate(input_ids=list(prompts), sampling_params=params)
        return [(one["output_ids"], one["meta_info"]["cached_tokens"]) for one in found]

    def answer(ids: list[int], wish: str) -> tuple[list[int], int]:
        return answers(wish, ids)[0]

    exact, _ = answer(prompt, "exact")
    engine.flush_cache()
    (remapped, _), _ = answers("topk:k=1", prompt, prompt[::-1])  # a row alone would keep its experts
    assert remapped != exact
    expected, cached = answer(prompt + remapped, "exact")
    assert cached == len(prompt), "of the first answer nothing may be handed on; the prompt is shared"
    engine.flush_cache()
    assert answer(prompt + remapped, "exact") == (expected, 0)
    longer, cached = answer(prompt + remapped + expected, "fast")
    assert cached >= len(prompt + remapped + expected) - 2, "what exact requests generate is shared"
    assert len(longer) == 40
