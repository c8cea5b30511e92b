"""Two data-parallel engines on loopback: each decides on its own requests' rows, and exact ones get plain answers.

vLLM routes before it sends tokens to other ranks, so a policy sees one rank's batch, and a rank's experts are loaded by
what all ranks have sent.
"""

import json
import os
import subprocess
import sys

import pytest
from places import HELPERS, MODELS
from tiny_vllm import engine, prompts

LYNX = "lynx:alpha=0.3,beta=1"
UNEVEN = {"requests": [9, 3]}
SCENARIOS = {
    "plain": {"policy": "vanilla", **UNEVEN},
    "mixed": {"policy": LYNX, "exact": "odd", **UNEVEN},
    "all": {"policy": LYNX, **UNEVEN},
    "idle": {"policy": LYNX, "exact": "odd", "requests": [9, 0]},
    "abort": {"policy": LYNX, "exact": "odd", "abort": 3, **UNEVEN},
    "per_rank": {"policy": f"{LYNX},per_rank=true", **UNEVEN},
}
LAYOUTS = {"tensors": {}, "experts": {"enable_expert_parallel": True}}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """What the two ranks of each layout found: by scenario, and what a scrape told."""
    paths = os.pathsep.join(path for path in (str(HELPERS), os.environ.get("PYTHONPATH")) if path)
    env = {**os.environ, "PYTHONPATH": paths, "LYNX_MOE_METRICS_DIR": str(tmp_path_factory.mktemp("metrics"))}
    env |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    told = [str(MODELS / "qwen3-moe"), json.dumps(list(LAYOUTS.values())), json.dumps(list(SCENARIOS.values()))]
    command = [sys.executable, str(HELPERS / "data_parallel.py"), *told]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"rank"')]
    told = [{**dict(zip(SCENARIOS, one["runs"], strict=True)), **one} for one in lines]
    pairs = [sorted(told[first : first + 2], key=lambda one: one["rank"]) for first in (0, 2)]
    return dict(zip(LAYOUTS, pairs, strict=True))


@pytest.fixture(params=LAYOUTS)
def ranks(request, layouts):
    return layouts[request.param], request.param


@pytest.fixture(scope="module")
def one_server():
    """What one server without data parallelism answers to the first rank's requests: token and its log-probability."""
    from vllm import SamplingParams

    greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False, "logprobs": 1}
    asked = prompts(9, seed=5)
    params = [SamplingParams(max_tokens=6 + (7 * i) % 16, **greedy) for i in range(9)]
    with engine(str(MODELS / "qwen3-moe"), max_num_batched_tokens=64) as llm:
        return [list(one.outputs[0].token_ids) for one in llm.generate(asked, params, use_tqdm=False)]


def test_exact_requests_get_plain_answers_bit_for_bit_and_those_of_one_server(ranks, one_server):
    found, _ = ranks
    for rank in found:
        exact = {name: got for name, got in rank["mixed"]["got"].items() if int(name) % 2}
        assert exact
        assert exact == {name: rank["plain"]["got"][name] for name in exact}
        assert rank["mixed"]["got"] != rank["plain"]["got"]
    tokens = [found[0]["plain"]["got"][str(i)][0] for i in range(9)]
    same = sum(a == b for x, y in zip(tokens, one_server, strict=True) for a, b in zip(x[:4], y[:4], strict=True))
    assert same >= 0.8 * 4 * 9  # a sum over ranks is rounded otherwise


def test_each_rank_decides_on_its_own_rows(ranks):
    found, layout = ranks
    first, second = (rank["all"] for rank in found)
    assert first["probe"]["digest"] != second["probe"]["digest"]
    for run, plain in zip((first, second), (rank["plain"] for rank in found), strict=True):
        assert run["stats"]["mean_after"] < run["stats"]["mean_before"]
        assert plain["stats"]["mean_after"] == plain["stats"]["mean_before"]
        # experts of all ranks count: a rank's own rows ask for them, wherever they are
        assert all(experts is None for experts in run["probe"]["here"].values())
    assert first["stats"]["steps"]["decode"] > second["stats"]["steps"]["decode"]
    if layout == "experts":
        loaded = {name: sum(rank[name]["loads"] for rank in found) for name in ("plain", "all")}
        assert loaded["all"] < 0.9 * loaded["plain"]


def test_a_rank_without_requests_waits_for_nobody_and_counts_nothing(ranks):
    (busy, idle), _ = ranks
    assert idle["idle"]["dummies"] > 10
    assert not any(idle["idle"]["stats"]["steps"].values())
    exact = {name: tokens for name, (tokens, _) in busy["idle"]["got"].items() if int(name) % 2}
    assert exact == {name: busy["plain"]["got"][name][0] for name in exact}
    assert busy["idle"]["stats"]["mean_after"] < busy["idle"]["stats"]["mean_before"]


def test_an_abort_leaves_the_others_answers(ranks):
    found, _ = ranks
    for rank in found:
        assert set(rank["abort"]["got"]) == set(rank["plain"]["got"]) - {"0"}
        exact = {name: tokens for name, (tokens, _) in rank["abort"]["got"].items() if int(name) % 2}
        assert exact == {name: rank["plain"]["got"][name][0] for name in exact}


def test_a_rank_spreads_its_own_rows_experts_over_all_ranks(ranks):
    found, layout = ranks
    for rank in found:
        fullest = [rank[name]["probe"]["fullest"] for name in ("all", "per_rank")]
        assert fullest[1] <= fullest[0] if layout == "experts" else fullest[1] == fullest[0]


def test_every_rank_tells_its_metrics_under_vllm_s_label(ranks):
    """Of two processes that share a directory, and of two that do not: there the second one is heard by the store."""
    (first, _), _ = ranks
    assert set(first["metrics"]) == {"0", "1"}
    assert first["metrics"]["0"] > first["metrics"]["1"] > 0
