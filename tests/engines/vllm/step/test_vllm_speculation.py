"""Speculative decoding by n-grams: rows that verify stay exact unless a request asks otherwise, and an exact request's
answer is plain vLLM's. In a process of its own, for n-grams bring numba, after which vLLM starts no other engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

from places import HELPERS

SCRIPT = """
import json
from tiny_vllm import engine, tokens
from vllm import SamplingParams
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.engines.shared.metrics import Kind
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.testbed import path, tasks

OPTIONS = {"max_model_len": 512, "dtype": "auto", "skip_tokenizer_init": False, "disable_log_stats": False}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
PROMPTS = [item.prompt for task in list(tasks.TASKS)[:8] for item in tasks.test_items(task, 3, seed=3)]

def ask(llm, wishes):
    llm.reset_prefix_cache()
    params = [SamplingParams(temperature=0, max_tokens=40, extra_args=wish) for wish in wishes]
    return tokens(llm.generate(PROMPTS, params, use_tqdm=False))

def counts(llm):
    names = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
    return [sum(m.value for m in llm.get_metrics() if m.name == name) for name in names]

if __name__ == "__main__":
    found, none = {}, [None] * len(PROMPTS)
    modes = ({"lynx_moe": "exact"}, None, {"lynx_moe": "fast", "lynx_moe_verify": "remap"})
    mixed = [modes[number % 3] for number in range(len(PROMPTS))]
    with engine(str(path("qwen3-moe")), **OPTIONS) as llm:
        found["plain"] = ask(llm, none)
    with engine(str(path("qwen3-moe")), "vanilla", speculative_config=NGRAM, **OPTIONS) as llm:
        moved, decide = [], Plan.reroute
        def reroute(plan, logits, weights, ids, layer, *more):
            final = decide(plan, logits, weights, ids, layer, *more)
            if final is not None and plan.rows.kind is Kind.MIXED:
                changed, rows = (final.ids != ids).any(-1), plan.rows.remap[: len(ids)]
                deep = plan.rows.depth[: len(ids)] > 0 if plan.rows.drafted else rows & False
                moved.append([int(changed[each].sum()) for each in (rows & ~deep, rows & deep, ~rows)])
            return final
        Plan.reroute = reroute
        for name, policy, wishes in (("vanilla", "vanilla", none), ("lynx", "lynx", none), ("mixed", "lynx", mixed)):
            lynx_vllm.set_policy(policy)
            before = counts(llm)
            lynx_vllm.reset_stats()
            moved.clear()
            found[name] = ask(llm, wishes)
            found[name + " counts"] = [b - a for a, b in zip(before, counts(llm))]
            found[name + " moved"] = [sum(part) for part in zip(*moved)]
            found[name + " told"] = lynx_vllm.stats().verified
    print(json.dumps(found))
"""


def test_exact_answers_are_plain_vllm_s_and_rows_of_drafts_are_remapped_for_who_asks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join(p for p in (str(HELPERS), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["vanilla"] == found["plain"]
    assert found["mixed"][::3] == found["plain"][::3]
    for name in ("vanilla", "lynx", "mixed"):
        drafted, accepted = found[f"{name} counts"]
        told = found[f"{name} told"]
        print(f"{name}: {accepted:.0f} of {drafted:.0f} drafted tokens accepted")
        assert 0 < accepted < drafted
        assert 0.7 * drafted < sum(told["drafted"]) <= drafted + 24 * 3  # the last ones come with the next step
        assert (told["remappable_rows"] > 0) == (name == "mixed")
    assert found["lynx moved"][0] > 0
    assert found["lynx moved"][1:] == [0, 0]
    assert found["mixed moved"][1] > 0  # of the last third
    assert found["mixed moved"][2] == 0
