"""A compiled engine in which a model drafts, in a process of its own: exact answers are plain vLLM's there too."""

import json
import os
import subprocess
import sys
from pathlib import Path

from places import HELPERS

from lynx_moe.testbed import path

SCRIPT = """
import json, sys
from tiny_vllm import engine, tokens
from vllm import SamplingParams
from lynx_moe.engines import vllm as lynx_vllm
from lynx_moe.testbed import tasks

PROMPTS = [item.prompt for task in list(tasks.TASKS)[:6] for item in tasks.test_items(task, 2, seed=3)]

def ask(llm, *wishes):
    llm.reset_prefix_cache()
    asked = [SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, extra_args=wishes[n % len(wishes)])
             for n in range(len(PROMPTS))]
    return tokens(llm.generate(PROMPTS, asked, use_tqdm=False))

def drafting(**more):
    speculation = {"method": "draft_model", "model": sys.argv[2], "num_speculative_tokens": 3}
    return engine(sys.argv[1], enforce_eager=False, skip_tokenizer_init=False, dtype="auto",
                  speculative_config=speculation, **more)

if __name__ == "__main__":
    with drafting() as llm:
        plain = ask(llm, None)
    with drafting(additional_config={"lynx_moe": {"policy": "oea:k0=2", "verify": "remap"}}) as llm:
        exact = ask(llm, {"lynx_moe": "exact"})
        lynx_vllm.reset_stats()
        mixed = ask(llm, {"lynx_moe_verify": "exact"}, None)
        stats = lynx_vllm.stats()
    print(json.dumps([plain, exact, mixed, stats.as_dict()]))
"""


def test_a_compiled_engine_verifies_as_it_is_asked(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join(part for part in (str(HELPERS), os.environ.get("PYTHONPATH")) if part)
    env = {**os.environ, "PYTHONPATH": paths, "VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "script.py"), str(path("qwen3-moe")), str(path("draft"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    plain, exact, mixed, stats = json.loads(done.stdout.splitlines()[-1])
    assert exact == plain  # the same steps, bit for bit
    assert all(len(answer) == 16 for answer in mixed)
    told = stats["verified"]
    assert 0 < told["remappable_rows"] < told["rows"]
    assert 0 < sum(told["accepted"]) < sum(told["drafted"])
    assert sum(layer[kind]["changed_rows"] for layer in stats["layers"] for kind in ("decode", "mixed")) > 0
    assert stats["drafter"] is None  # a dense one has nothing to count
