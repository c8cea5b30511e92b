"""Engines of two workers on loopback: every rank decides alike, and counts what it loads itself.

Pipelines run eager only after a dummy step (vLLM 0.32 makes the CPU's receive buffers in there).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import HELPERS
from tiny_vllm import save_model

SCRIPT = """
import json, sys
from tiny_vllm import generate, prompts, tokens
from vllm import LLM

if __name__ == "__main__":
    model, policies, layout, options = sys.argv[1], sys.argv[2].split(), *map(json.loads, sys.argv[3:])
    llm = LLM(model=model, skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, max_num_seqs=16,
              max_num_batched_tokens=48, dtype="bfloat16", worker_extension_cls="parallel_worker.Probe",
              additional_config={"lynx_moe": options if "tuned" in options else {"policy": policies[0], **options}},
              **layout)
    if "pipeline_parallel_size" in layout:
        llm.collective_rpc("execute_dummy_batch")
    found = []
    for policy in policies:
        if "tuned" not in options:
            llm.collective_rpc("lynx_set_policy", args=(policy,))
        llm.collective_rpc("lynx_reset_stats")
        outputs = generate(llm, prompts(12, seed=5))
        stats = llm.collective_rpc("lynx_stats")
        found.append({"tokens": tokens(outputs), "stats": stats, "probes": llm.collective_rpc("lynx_probe")})
    print(json.dumps({"found": found}))
"""
POLICIES = ("vanilla", "lynx:alpha=0.3,beta=1", "lynx:alpha=0.3,beta=1,per_rank=true")
NAMES = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


def found(
    model: str, folder: Path, policies: tuple[str, ...] = POLICIES, options: dict | None = None, **layout: object
) -> list[dict]:
    """What each policy's run gave."""
    path, here = folder / "script.py", str(HELPERS)
    path.write_text(SCRIPT)
    paths = os.pathsep.join(p for p in (here, os.environ.get("PYTHONPATH")) if p)
    cores = sorted(os.sched_getaffinity(0))
    each = [str(cores[rank % len(cores)]) for rank in range(2 if layout else 1)]
    apart = "pipeline_parallel_size" in layout  # else all requests are there before the first step: batches are equal
    workers = {"VLLM_ENABLE_V1_MULTIPROCESSING": str(int(apart)), "OMP_NUM_THREADS": "1"}
    workers["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(each)
    command = [sys.executable, str(path), model, " ".join(policies), json.dumps(layout), json.dumps(options or {})]
    env = {**os.environ, **workers, "PYTHONPATH": paths}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"found"')))["found"]


@pytest.fixture(scope="module")
def one(model, tmp_path_factory):
    return found(model, tmp_path_factory.mktemp("one"))


def agree(a: dict, b: dict) -> int:
    """How many requests begin alike: a sum over ranks is rounded otherwise, so sequences of a random model part."""
    return sum(x[:2] == y[:2] for x, y in zip(a["tokens"], b["tokens"], strict=True))


def test_tensor_parallel_ranks_decide_and_count_alike(model, one, tmp_path):
    runs = found(model, tmp_path, tensor_parallel_size=2)
    for run, alone in zip(runs, one, strict=True):
        assert len(run["stats"]) == 2
        assert run["probes"][0] == run["probes"][1]
        assert run["stats"][0]["layers"] == run["stats"][1]["layers"]
        assert agree(run, alone) >= 6
    assert runs[1]["stats"][0]["mean_after"] < 0.5 * runs[1]["stats"][0]["mean_before"]
    assert agree(runs[2], runs[1]) >= 6  # tensor parallelism keeps every expert on every rank


def test_expert_parallel_ranks_decide_alike_and_count_their_own_experts(model, one, tmp_path):
    runs = found(model, tmp_path, tensor_parallel_size=2, enable_expert_parallel=True)
    for run, alone in zip(runs, one, strict=True):
        (first, second) = run["probes"]
        assert first["digest"] == second["digest"]
        assert first["decisions"] == second["decisions"] > 0
        assert agree(run, alone) >= 6
    first, second = (probe["here"][NAMES[0]] for probe in runs[0]["probes"])
    assert (first, second) == (list(range(16)), list(range(16, 32)))
    own = [stats["mean_before"] for stats in runs[0]["stats"]]
    assert max(own) <= 16
    assert sum(own) == pytest.approx(one[0]["stats"][0]["mean_before"], rel=0.1)
    vanilla, lynx, per_rank = (run["probes"][0]["fullest"] for run in runs)
    assert per_rank < lynx < 0.6 * vanilla


def test_pipeline_stages_have_their_own_layers_by_the_model_s_numbers(model, one, tmp_path):
    runs = found(model, tmp_path, pipeline_parallel_size=2)
    for run in runs:
        assert [[layer["name"] for layer in stats["layers"]] for stats in run["stats"]] == [NAMES[:1], NAMES[1:]]
    assert agree(runs[0], one[0]) >= 6  # two batches are under way at a time, so policies see other ones
    after = [stats["mean_after"] for stats in runs[1]["stats"]]
    before = [stats["mean_before"] for stats in runs[1]["stats"]]
    assert all(a < 0.5 * b for a, b in zip(after, before, strict=True))


HARSH = ("random:num_keep=8", "priced:price=1e-30", "priced:price=0.1")


@pytest.fixture(scope="module")
def shadowed(model, tmp_path_factory):
    return found(model, tmp_path_factory.mktemp("shadowed"), HARSH, {"shadow": 1})


def kl(stats: dict, since: dict | None = None) -> float:
    """Mean over all rows, in nats, of what was measured since."""
    sums = [[(b["rows"], b["rows"] * b["kl"]) for b in each["shadows"]["batches"]] for each in (stats, since) if each]
    (rows, whole), *earlier = [[sum(column) for column in zip(*each, strict=True)] for each in sums]
    return (whole - sum(e[1] for e in earlier)) / (rows - sum(e[0] for e in earlier))


def kls(runs: list[dict], rank: int = 0) -> list[float]:
    """Of each policy in turn."""
    stats = [run["stats"][rank] for run in runs]
    return [kl(one, before) for one, before in zip(stats, [None, *stats], strict=False)]


def test_tensor_parallel_ranks_hear_one_measurement_and_tokens_are_those_without_shadows(model, shadowed, tmp_path):
    runs = {shadow: found(model, tmp_path, HARSH, {"shadow": shadow}, tensor_parallel_size=2) for shadow in (0, 1)}
    for without, run in zip(runs[0], runs[1], strict=True):
        assert run["tokens"] == without["tokens"]
        assert [each["layers"] for each in run["stats"]] == [each["layers"] for each in without["stats"]]
        assert run["stats"][0]["shadows"] == run["stats"][1]["shadows"]
    harsh, nothing, _ = kls(runs[1])
    assert nothing == pytest.approx(0.0, abs=1e-9)
    assert harsh == pytest.approx(kls(shadowed)[0], rel=0.3)


def test_pipeline_stages_run_each_pass_from_the_stage_before(model, shadowed, tmp_path):
    """Half of the layers alone would give half of the KL or less, so every pass went on from its own. Which requests
    share a step depends on the stages' pace, and the KL with it."""
    runs = found(model, tmp_path, HARSH, {"shadow": 1}, pipeline_parallel_size=2)
    for run in runs:
        first, last = (each["shadows"] for each in run["stats"])
        assert abs(first["steps"] - last["steps"]) <= 1  # the last plan may not have reached both
        assert last["steps"] > 10
    harsh, nothing, _ = kls(runs, 1)
    assert nothing == pytest.approx(0.0, abs=1e-9)
    assert harsh == pytest.approx(kls(shadowed)[0], rel=0.42)


def test_tensor_parallel_ranks_come_to_the_same_price(model, tmp_path):
    (run,) = found(model, tmp_path, ("priced",), {"max_kl": 0.5}, tensor_parallel_size=2)
    first, second = (each["bound"] for each in run["stats"])
    assert first == second
    assert run["probes"][0] == run["probes"][1]
    assert {each["batch"] for each in first["batches"]} >= {"9-16"}


def test_tensor_parallel_ranks_come_to_the_same_share(model, tmp_path):
    """An objective that no step can meet, timed by each rank's own clock: they hear one rank's times, and so agree."""
    (run,) = found(model, tmp_path, ("priced",), {"slo_tpot_ms": 1e-3}, tensor_parallel_size=2)
    first, second = (each["pace"] for each in run["stats"])
    assert first == second
    assert run["probes"][0] == run["probes"][1]
    shares = {each["batch"]: each["share"] for each in first["batches"]}
    assert max(shares.values()) > 0


def test_tensor_parallel_ranks_take_the_same_tuned_settings(model, tmp_path):
    file = tmp_path / "tuned.json"
    batches = {"1": "vanilla", "5-8": "lynx:alpha=0.3,beta=1", "9-16": "priced:price=0.5"}
    file.write_text(json.dumps({"lynx_moe_tuned": 1, "model": {}, "max_kl": 0.01, "batches": batches}))
    (run,) = found(model, tmp_path, ("tuned",), {"tuned": str(file)}, tensor_parallel_size=2)
    first, second = (each["tuned"] for each in run["stats"])
    assert first == second
    assert run["probes"][0] == run["probes"][1]
    steps = {one["batch"]: one["steps"] for one in first["batches"]}
    assert steps["9-16"] > 0
    assert sum(steps.values()) == sum(run["stats"][0]["steps"][kind] for kind in ("decode", "mixed", "single"))
