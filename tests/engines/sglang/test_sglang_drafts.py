"""SGLang's engine drafts by n-grams beside a policy, on a CPU. What verifies them there is in `tests/stubs_sglang`."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import sglang_here
from sglang_here import LENGTH, PROMPTS

from lynx_moe.engines import sglang as ours
from lynx_moe.engines.sglang.launch.options import VARIABLE
from lynx_moe.testbed import path

COMPILES = shutil.which("ninja") is not None and shutil.which("c++") is not None
pytestmark = [
    pytest.mark.skipif(not sglang_here.HAS_SGLANG, reason=sglang_here.WITHOUT),
    pytest.mark.skipif(not COMPILES, reason="no c++ or no ninja: SGLang cannot compile its n-grams"),
]
WIDTH = 6  # rows of a request in a step
Ids = list[list[int]]


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    patch.setenv(VARIABLE, json.dumps({"policy": "lynx:alpha=3,beta=1"}))
    import sglang

    drafts = {"speculative_algorithm": "NGRAM", "speculative_num_draft_tokens": WIDTH}
    made = sglang.Engine(
        model_path=str(path("qwen3-moe")), log_level="error", grammar_backend="none", **sglang_here.ARGUMENTS, **drafts
    )
    yield made
    made.shutdown()
    patch.undo()


def ask(engine: Any, *wishes: dict[str, Any]) -> tuple[Ids, int]:
    """Token ids, each prompt's wish in turn; and how many steps they took, summed over the requests."""
    each = [wishes[number % len(wishes)] for number in range(len(PROMPTS))]
    greedy = {"temperature": 0, "max_new_tokens": LENGTH, "ignore_eos": True}
    answers = engine.generate(PROMPTS, [greedy | {"custom_params": wish} for wish in each])
    return [one["output_ids"] for one in answers], sum(one["meta_info"]["spec_verify_ct"] for one in answers)


def test_drafts_are_verified_exactly_under_a_policy(engine: Any, plain: Ids) -> None:
    """A second time the n-grams have seen the answers, so many tokens are accepted at once."""
    ours.reset_stats(engine)
    for most in (LENGTH, LENGTH / 2):
        answers, steps = ask(engine, {})
        assert answers == plain
        assert steps < most * len(PROMPTS)
    stats = ours.describe(engine)["stats"]
    assert stats["verified"]["rows"] >= WIDTH * LENGTH
    assert stats["verified"]["remappable_rows"] == 0
    assert stats["steps"]["decode"] == 0
    assert stats["steps"]["prefill"] > 0


def test_who_asks_for_it_has_drafts_verified_under_the_policy_and_exact_requests_do_not(
    engine: Any, plain: Ids
) -> None:
    ours.reset_stats(engine)
    answers, _ = ask(engine, {"lynx_moe_verify": "remap"}, {"lynx_moe": "exact", "lynx_moe_verify": "remap"}, {})
    assert [answers[number] for number in range(len(PROMPTS)) if number % 3] == [
        plain[number] for number in range(len(PROMPTS)) if number % 3
    ]
    stats = ours.describe(engine)["stats"]
    assert 0 < stats["verified"]["remappable_rows"] < stats["verified"]["rows"]
    everybody, _ = ask(engine, {"lynx_moe_verify": "remap"})
    assert everybody != plain
    stats = ours.describe(engine)["stats"]
    assert stats["mean_after"] < 0.8 * stats["mean_before"]
    assert ask(engine, {"lynx_moe": "exact"})[0] == plain, "no KV of theirs is handed on"
