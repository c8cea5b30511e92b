"""What needs a process of its own: engines that vLLM compiles, and an engine in another process than the caller."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS
from tiny_vllm import save_model

COMPILED = """
import json, sys
from tiny_vllm import engine, generate, prompts, tokens
from lynx_moe.engines import vllm as lynx_vllm

if __name__ == "__main__":
    requests, mixed = prompts(64, seed=5), {"max_num_batched_tokens": 48, "enforce_eager": False}
    with engine(sys.argv[1], **mixed) as llm:
        plain = tokens(generate(llm, requests))
    with engine(sys.argv[1], "vanilla", **mixed) as llm:
        vanilla = tokens(generate(llm, requests))
        same = lynx_vllm.stats()
        lynx_vllm.set_policy("lynx:alpha=0.3,beta=1")
        lynx_vllm.reset_stats()
        generate(llm, requests)
        less = lynx_vllm.stats()
        llm.reset_prefix_cache()
        asked = tokens(generate(llm, requests, ("exact", None, "fast", "random:num_keep=8")))
        lynx_vllm.set_policy("random:num_keep=4")
        lynx_vllm.set_guard({"max_error": 0.2, "shadow_steps": 1, "window": 16, "ladder": []})
        generate(llm, requests)
        guarded = lynx_vllm.stats()
    exact = [asked[i::4] == plain[i::4] for i in range(4)]
    on_disk = {"policy": "vanilla", "shadow": 0, "experts_resident": "100%", "experts_folder": sys.argv[2]}
    with engine(sys.argv[1], additional_config={"lynx_moe": on_disk}, **mixed) as llm:
        paged = tokens(generate(llm, requests)) == plain, lynx_vllm.stats().disk["steps"]["decode"]
    print(json.dumps([plain == vanilla, same.as_dict(), less.as_dict(), exact, guarded.as_dict(), paged]))
"""
REMOTE = """
import json, sys
from tiny_vllm import generate, prompts
from vllm import LLM

def open_engine(policy):
    return LLM(model=sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, max_num_seqs=16,
               additional_config={"lynx_moe": {"policy": policy, "log_every": 0.01}})

if __name__ == "__main__":
    try:
        open_engine("linx")
    except ValueError as error:
        refused = str(error)
    print("now the engine", file=sys.stderr, flush=True)
    llm = open_engine("lynx:alpha=0.3,beta=1")
    generate(llm, prompts(16, seed=5))
    (stats,) = llm.collective_rpc("lynx_stats")
    print(json.dumps([stats, llm.collective_rpc("lynx_set_policy", args=("vanilla",)), refused]), flush=True)
    del llm
    open_engine("oea:k0=99")
"""
REMOTE_ENV = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


def run(script: str, folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    path = folder / "script.py"
    path.write_text(script)
    here = str(HELPERS)
    paths = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    env = {**os.environ, "PYTHONPATH": paths, "VLLM_CACHE_ROOT": str(folder / "cache"), **env}
    return subprocess.run([sys.executable, str(path), *args], env=env, capture_output=True, text=True, check=False)


def test_compiled_engines(model, tmp_path):
    done = run(COMPILED, tmp_path, model, str(tmp_path / "experts"))
    assert done.returncode == 0, done.stderr[-3000:]
    identical, same, less, exact, guarded, (alike, on_disk) = json.loads(done.stdout.splitlines()[-1])
    assert alike
    assert on_disk["hits"] > 100  # the compiled graph asked for them
    assert identical
    assert exact == [True, False, False, False]  # of the requests that ask to be exact, and of the others
    assert same["mean_after"] == same["mean_before"] > 0
    assert same["steps"]["mixed"] > 0
    assert less["mean_after"] < 0.9 * less["mean_before"]
    assert guarded["guard"]["samples"]["output_error"] > 10
    assert guarded["guard"]["changes"]["back_off"] >= 1


def test_an_engine_in_another_process_logs_answers_and_refuses_in_one_line(model, tmp_path):
    """A bad policy before anything starts; what only the engine finds out is the last line."""
    done = run(REMOTE, tmp_path, model, **REMOTE_ENV)
    answers = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    assert len(answers) == 1, done.stderr[-3000:]
    stats, policies, refused = json.loads(answers[0])
    assert policies == ["vanilla"]
    assert stats["policy"] == "lynx:alpha=0.3,beta=1"
    assert 0 < stats["mean_after"] < stats["mean_before"]
    assert "distinct experts per layer" in done.stdout + done.stderr
    assert "did you mean 'lynx'" in refused
    before, _, after = done.stderr.partition("now the engine")
    assert "EngineCore" not in before
    assert "EngineCore" in after
    assert done.returncode != 0
    last = [line for line in after.splitlines() if "resource_tracker" not in line][
        -1
    ]  # Python's own, of the engine before
    assert "Refusal: lynx_moe: oea: k0=99 is more than the model's top_k=4; use k0 <= 4 (layer " in last
