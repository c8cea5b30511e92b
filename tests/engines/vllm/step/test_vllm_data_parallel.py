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

from lynx_moe.engines import vllm as lynx_vllm

LYNX, PRICED = "lynx:alpha=0.3,beta=1", "priced:price=0.1"
UNEVEN = {"requests": [9, 3]}
SCENARIOS = {
    "plain": {"policy": "vanilla", **UNEVEN},
    "mixed": {"policy": LYNX, "exact": "odd", **UNEVEN},
    "all": {"policy": LYNX, **UNEVEN},
    "idle": {"policy": LYNX, "exact": "odd", "requests": [9, 0]},
    "abort": {"policy": LYNX, "exact": "odd", "abort": 3, **UNEVEN},
    "per_rank": {"policy": f"{LYNX},per_rank=true", **UNEVEN},
    "shadowed": {"policy": LYNX, "exact": "odd", "shadow": [1, 1], **UNEVEN},
    "shadowed alone": {"policy": LYNX, "exact": "odd", "shadow": [1, 1], "requests": [9, 0]},
    "bounded": {"policies": [PRICED, LYNX], "max_kl": [1.0, None], **UNEVEN},
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
    """Of one server without data parallelism and the first rank's requests: the model's own tokens; what every step
    measures under the policy, where every second request is exact."""
    from vllm import SamplingParams

    greedy = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
    wishes = [{"lynx_moe": "exact"} if i % 2 else None for i in range(9)]
    params = [SamplingParams(max_tokens=6 + (7 * i) % 16, extra_args=wish, **greedy) for i, wish in enumerate(wishes)]
    ours = {"lynx_moe": {"policy": "vanilla", "shadow": 1}}
    with engine(str(MODELS / "qwen3-moe"), max_num_batched_tokens=64, additional_config=ours) as llm:
        outputs = llm.generate(prompts(9, seed=5), params, use_tqdm=False)
        lynx_vllm.set_policy(LYNX)
        llm.generate(prompts(9, seed=5), params, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in outputs], lynx_vllm.stats().shadows


def kl(shadows):
    """(rows that were compared, their mean KL in nats)."""
    rows = sum(one["rows"] for one in shadows["batches"])
    return rows, sum(one["rows"] * one["kl"] for one in shadows["batches"]) / rows


def test_exact_requests_get_plain_answers_bit_for_bit_and_those_of_one_server(ranks, one_server):
    found, _ = ranks
    for rank in found:
        exact = {name: got for name, got in rank["mixed"]["got"].items() if int(name) % 2}
        assert exact
        assert exact == {name: rank["plain"]["got"][name] for name in exact}
        assert rank["mixed"]["got"] != rank["plain"]["got"]
    tokens = [found[0]["plain"]["got"][str(i)][0] for i in range(9)]
    same = sum(a == b for x, y in zip(tokens, one_server[0], strict=True) for a, b in zip(x[:4], y[:4], strict=True))
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
    rows, shadows = (first["metrics"][f"lynx_moe_{name}"] for name in ("rows", "shadow_steps"))
    assert set(rows) == set(shadows) == {"0", "1"}
    assert rows["0"] > rows["1"] > 0
    assert all(shadows.values())


def test_every_step_run_twice_on_both_ranks_leaves_every_answer(ranks, one_server):
    """Bit for bit, of exact requests and of those that follow the policy. What is measured is what one server does."""
    found, _ = ranks
    for rank in found:
        assert rank["shadowed"]["got"] == rank["mixed"]["got"]
        assert rank["shadowed"]["stats"]["layers"] == rank["mixed"]["stats"]["layers"]
        assert rank["mixed"]["stats"]["shadows"]["steps"] == 0
        assert rank["shadowed"]["stats"]["shadows"]["steps"] > 5
        assert rank["shadowed"]["passes"] > 1.5 * rank["mixed"]["passes"]
    (rows, mine), (theirs, one) = kl(found[0]["shadowed"]["stats"]["shadows"]), kl(one_server[1])
    assert rows == pytest.approx(theirs, abs=10)  # the last steps' samples are under way
    assert mine == pytest.approx(one, rel=0.5)  # a sum over ranks is rounded otherwise, so some sequences part


def test_a_rank_without_requests_makes_the_passes_of_the_others_and_measures_nothing(ranks):
    (busy, idle), _ = ranks
    assert busy["shadowed alone"]["got"] == busy["idle"]["got"]
    assert kl(busy["shadowed alone"]["stats"]["shadows"])[1] > 0
    assert idle["shadowed alone"]["stats"]["shadows"]["steps"] == 0
    assert idle["shadowed alone"]["passes"] == busy["shadowed alone"]["passes"] > 1.5 * idle["idle"]["passes"]


def test_a_bound_of_one_rank_moves_its_price_and_the_other_rank_measures_as_well(ranks):
    """Here a rank asks for two passes more or for one, and the other one never asks, and has one thing to compare."""
    (first, second), _ = ranks
    bound = first["bounded"]["stats"]["bound"]
    raised = {one["batch"]: one["price"] for one in bound["batches"] if one["changes"]["raise"]}
    assert bound["max_kl"] == 1.0
    assert max(raised.values()) > 0
    assert first["bounded"]["passes"] == second["bounded"]["passes"] > 2 * second["all"]["passes"]
    assert second["bounded"]["stats"]["bound"] is None
    assert kl(second["bounded"]["stats"]["shadows"])[1] > 0
    assert second["bounded"]["got"] == second["all"]["got"]
