"""`lynx-moe eval` from end to end on the trained model, and what it refuses before anything is loaded."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from covered import HAS_VLLM, WITHOUT_VLLM

from lynx_moe.lab.evaluation import harness, harness_results
from lynx_moe.lab.evaluation import measure as evaluation
from lynx_moe.lab.shared import lines
from lynx_moe.testbed import path

TASKS = ("lynx_testbed_sort", "lynx_testbed_walk")
LIMIT = 10


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lynx_moe.cli", *args]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)


def measure(out: Path, policies: str, *more: str) -> subprocess.CompletedProcess[str]:
    items = ("--tasks", ",".join(TASKS), "--limit", str(LIMIT))
    return run("eval", "qwen3-moe", "--policies", policies, *items, "--out", str(out), *more)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HAS_VLLM:
        pytest.skip(WITHOUT_VLLM)
    try:
        path("qwen3-moe")
    except ValueError as error:
        pytest.skip(str(error))
    out = tmp_path_factory.mktemp("eval")
    result = measure(out, "vanilla random:num_keep=64 random:num_keep=8")
    assert result.returncode == 0, result.stderr
    return out / "eval.jsonl"


def test_the_record_holds_settings_items_and_experts(record: Path) -> None:
    first, *lines = (json.loads(line) for line in record.read_text().splitlines())
    assert first["settings"]["tasks"] == list(TASKS)
    assert (first["settings"]["limit"], first["settings"]["concurrency"]) == (LIMIT, 16)
    policies = ("vanilla", "random:num_keep=64", "random:num_keep=8")
    assert [(line["policy"], line["task"]) for line in lines] == [(p, t) for p in policies for t in TASKS]
    for line in lines:
        metric = line["metrics"]["exact_match,none"]
        assert len(metric["items"]) == line["n"] == LIMIT
        assert metric["value"] == sum(metric["items"]) / LIMIT
        assert len(line["length"]["items"]) == LIMIT
        assert line["length"]["value"] > 0
        assert line["greedy"]
        assert metric["interval"][0] <= metric["value"] <= metric["interval"][1]
        assert line["decode_steps"] > 0
        assert len(line["after_by_layer"]) == 4


def test_keeping_every_expert_changes_no_answer_and_keeping_eight_does(record: Path) -> None:
    found = lines.load(record, "evaluation")["results"]
    metrics = [line["metrics"]["exact_match,none"] for line in found]
    assert [metric["items"] for metric in metrics[2:4]] == [metric["items"] for metric in metrics[:2]]
    assert [metric["difference"] for metric in metrics[:4]] == [0, 0, 0, 0]
    assert [metric["difference_interval"] for metric in metrics[:4]] == [[0, 0]] * 4
    assert found[0]["before"] == found[0]["after"] == found[2]["after"] > found[4]["after"]
    assert sum(metric["difference"] for metric in metrics[4:]) < 0


@pytest.fixture(scope="module")
def on_transformers(record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After `record`, since it is skipped where the trained model is not there."""
    out = tmp_path_factory.mktemp("transformers")
    result = measure(out, "vanilla random:num_keep=8", "--engine", "transformers")
    assert result.returncode == 0, result.stderr
    return out / "eval.jsonl"


def test_both_engines_agree_on_what_the_model_answers(record: Path, on_transformers: Path) -> None:
    here, there = (lines.load(path, "evaluation") for path in (on_transformers, record))
    assert (here["settings"]["engine"], there["settings"]["engine"]) == ("transformers", "vllm")
    for mine, theirs in zip(here["results"][:2], there["results"][:2], strict=True):
        assert [mine[key] for key in ("policy", "task", "n", "questions")] == [
            theirs[key] for key in ("policy", "task", "n", "questions")
        ]
        pairs = zip(*(line["metrics"]["exact_match,none"]["items"] for line in (mine, theirs)), strict=True)
        assert sum(a == b for a, b in pairs) >= LIMIT - 2  # bfloat16 rounds otherwise in each
        assert sum(mine["metrics"]["exact_match,none"]["items"]) > LIMIT / 2


def test_policies_act_on_transformers_and_are_counted_there(on_transformers: Path) -> None:
    found = lines.load(on_transformers, "evaluation")["results"]
    for line in found:
        assert line["decode_steps"] == line["steps"]["decode"] > line["steps"]["prefill"] > 0
        assert len(line["after_by_layer"]) == 4
    assert found[0]["before"] == found[0]["after"]
    assert found[2]["after"] <= 8 < found[0]["after"]
    assert sum(line["metrics"]["exact_match,none"]["difference"] for line in found[2:]) < 0


def test_a_finished_record_is_only_shown_and_drawn_again(record: Path, tmp_path: Path) -> None:
    again = measure(record.parent, "vanilla")
    assert again.returncode == 0
    assert "loading" not in again.stdout
    assert "mean of 2 tasks" in " ".join(again.stdout.split())
    picture = tmp_path / "again.png"
    assert run("plot", str(record), "--out", str(picture)).returncode == 0
    assert picture.stat().st_size > 10_000
    page = run("table", str(record)).stdout
    assert page.startswith("### qwen3-moe\n\n| task | n | vanilla | random:num_keep=64 |")


@pytest.mark.vllm
def test_calibrated_policies_take_their_file_under_vllm(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    made = run("calibrate", "qwen3-moe", "--sequences", "28", "-o", str(file))
    assert made.returncode == 0, made.stderr
    knobs = ("reap:num_keep=8", "exfold:num_keep=8", "sere:num_primary=4,rho=0")
    result = measure(tmp_path, " ".join(f"{knob},data={file}" for knob in knobs))
    assert result.returncode == 0, result.stderr
    found = lines.load(tmp_path / "eval.jsonl", "evaluation")["results"][:: len(TASKS)]
    assert [line["after"] <= 8 for line in found] == [True, True, False]
    assert all(line["after"] < line["before"] for line in found)


def test_an_interrupted_record_goes_on_and_takes_no_other_settings(
    record: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    part, lines = tmp_path / "eval.jsonl", record.read_text().splitlines()
    part.write_text("\n".join(lines[:5]) + "\n")  # settings, vanilla, random:num_keep=64
    given = json.loads(lines[0])["settings"]
    kept = {
        key: tuple(v) if isinstance(v, list) else v for key, v in given.items() if key not in ("weights", "versions")
    }
    engine = SimpleNamespace(set_policy=lambda spec: f"full {spec}", set_guard=lambda options: None, parts=[])
    engine.lengths, engine.sampled = {}, set()
    monkeypatch.setitem(evaluation.ENGINES, "vllm", lambda *_, **__: engine)
    monkeypatch.setattr(harness, "run", lambda *_, **__: None)
    done = []
    monkeypatch.setattr(
        harness_results, "lines", lambda policy, *_: done.append(policy) or [json.loads(line) for line in lines[5:]]
    )
    settings = evaluation.Settings(**kept)
    evaluation.evaluate(settings, ["vanilla", "random:num_keep=8"], part)
    assert done == ["random:num_keep=8"]
    assert part.read_text().splitlines()[:5] == lines[:5]
    assert len(part.read_text().splitlines()) == len(lines)
    for other in ({"concurrency": 8}, {"mix": "homogeneous"}, {"limit": None}):
        with pytest.raises(ValueError, match=f"was made with {next(iter(other))}="):
            evaluation.evaluate(replace(settings, **other), ["vanilla"], part)


def test_a_guard_watches_every_policy_that_changes_something_once_more(tmp_path: Path, monkeypatch: Any) -> None:
    did: list[tuple[str, Any]] = []
    engine = SimpleNamespace(parts=[], lengths={}, sampled=set())
    engine.set_policy = lambda spec: did.append(("policy", spec)) or spec
    engine.set_guard = lambda options: did.append(("guard", options))
    monkeypatch.setitem(evaluation.ENGINES, "vllm", lambda *_, **__: engine)
    monkeypatch.setattr(harness, "run", lambda *_, **__: did.append(("run", None)))
    named = []
    monkeypatch.setattr(harness_results, "lines", lambda arm, spec, *_: named.append((arm, spec)) or [])
    guard = {"max_mass_lost": 0.2}
    settings = evaluation.Settings(model="m", tasks=TASKS, guard=guard)
    evaluation.evaluate(settings, ["vanilla", "oea:k0=3"], tmp_path / "eval.jsonl")
    assert [arm for arm, _ in named] == ["vanilla", "oea:k0=3", "oea:k0=3 guarded"]
    assert all(arm == spec for arm, spec in named)
    runs = [did[place - 3 : place] for place, step in enumerate(did) if step[0] == "run"]
    assert runs == [
        [("guard", None), ("policy", "vanilla"), ("guard", None)],
        [("guard", None), ("policy", "oea:k0=3"), ("guard", None)],
        [("guard", None), ("policy", "oea:k0=3"), ("guard", guard)],
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--policies", "vanilla linx"), "did you mean 'lynx'"),
        (("--tasks", "lynx_testbed_ad"), "near it: lynx_testbed_add"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, args: tuple[str, ...], says: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe", "num_experts": 64, "num_experts_per_tok": 8}')
    result = run("eval", str(tmp_path), *args, "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("policies", "says"),
    [([], "at least one"), (["lynx", "lynx"], "each of them once"), (["lynx", "oea"], "oea needs k0")],
)
def test_bad_policies_are_refused(tmp_path: Path, policies: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluation.evaluate(evaluation.Settings(model="m", tasks=TASKS), policies, tmp_path / "eval.jsonl")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"mix": "both"}, "homogeneous, heterogeneous"),
        ({"concurrency": 1}, "2 or more"),
        ({"tasks": ()}, "no task"),
        ({"model_args": "dtype=float32,max_num_seqs=4"}, "max_num_seqs"),
        ({"engine": "sglang"}, "not one of vllm, transformers"),
        ({"guard": {"max_mass": 0.1}}, "unknown key 'max_mass'"),
        ({"guard": {"max_mass_lost": 0.1}, "engine": "transformers"}, "--guard needs --engine vllm"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        evaluation.Settings(**{"model": "m", "tasks": ("gsm8k",), **setting})
