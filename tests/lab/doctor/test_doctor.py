"""`lynx-moe doctor`: what it says, what it refuses, and that it goes on where it stopped; once through vLLM."""

import json
from itertools import count
from pathlib import Path

import pytest
from synthetic_steps import own, samples
from tiny_moe import save_dense
from tiny_vllm import save_model
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.engines.vllm.launch import acting
from lynx_moe.lab.doctor import measure, show
from lynx_moe.lab.doctor.findings import findings, of_record
from lynx_moe.lab.doctor.measure import LEAST_ROUNDS, MOST_ROUNDS, Settings
from lynx_moe.lab.shared import lines

SHAPE = {"model": "qwen3-30b", "batch_sizes": (1, 4, 16, 32)}


def memory_bound(rows, experts):
    return 8 + 0.7 * experts


def turning(rows, experts):
    return max(4 + 0.5 * experts, 1 + 2 * rows)


def host_bound(rows, experts):
    return 12.0


def of_step(step, settings):
    """What times a round on a machine of such steps; and the calls that it got."""
    calls = []

    def take(batch, number):
        calls.append((batch, number))
        taken = samples(step, sizes=(batch,), rounds=1, policies=("vanilla", "priced:price=0.1", "priced"))
        spec = {"priced": settings.asked}
        return [{**s, "round": number, "policy": spec.get(s["policy"], s["policy"])} for s in taken]

    return take, calls


@pytest.fixture
def settings():
    return Settings(**SHAPE, beside=("vanilla", "priced:price=0.1"))


def filled(step, settings, path, clock=lambda: 0.0):
    take, calls = of_step(step, settings)
    whole = lines.begin(path, measure.KIND, measure.asdict(settings))
    return measure.fill(settings, whole, path, take, lambda message: None, clock), calls


@pytest.mark.parametrize(
    ("step", "says", "act"),
    [
        (memory_bound, "pays from batch 2 to 32, the largest tried: about 1.8x at 32", (2, 32)),
        (
            turning,
            "pays from batch 2 to 27: about 1.6x at 4; compute-bound from batch 29 to 32, the largest tried",
            (2, 27),
        ),
        (host_bound, "does not pay here: steps are host-bound", (1, 0)),
        (lambda rows, experts: 2.0 * rows, "does not pay here: steps are compute-bound", (1, 0)),
    ],
)
def test_the_verdict_is_one_plain_line_and_a_server_acts_as_it_says(step, says, act, settings, tmp_path):
    whole, _ = filled(step, settings, tmp_path / "doctor.jsonl")
    found = of_record(whole)
    assert found["verdict"] == says
    assert found["act"] == dict(zip(("act_from", "act_to"), act, strict=True))
    told = show.save_findings(whole, tmp_path / "doctor.json")
    assert acting.read(str(told), "priced", "qwen3-30b") == (found["act"], says)


def test_a_policy_whose_decisions_eat_the_gain_does_not_pay():
    costs = {"priced": 60.0}
    found = findings(samples(memory_bound, decision_ms=costs), "priced", "vanilla")
    assert found["pays"] == []
    assert found["verdict"].endswith("the policy leaves out too few to gain anything")
    cheap = findings(samples(memory_bound), "priced", "vanilla")
    assert cheap["pays"] == [[2, 64]]
    line = next(line for line in cheap["lines"] if line["batch"] == 16)
    assert line["loads"] == pytest.approx(0.7 * own(16) / memory_bound(16, own(16)))
    assert line["predicted"] == pytest.approx(line["measured"]) == pytest.approx(line["held_out"])
    assert all(line["predicted"] == pytest.approx(line["measured"]) for line in found["lines"])


def test_a_record_goes_on_where_it_stopped(settings, tmp_path):
    path = tmp_path / "doctor.jsonl"
    whole, _ = filled(memory_bound, settings, path)
    part = {**whole, "results": [s for s in whole["results"] if s["batch"] < 16]}
    lines.save(part, path)
    again, calls = filled(memory_bound, settings, path)
    assert {batch for batch, _ in calls} == {16, 32}
    assert sorted({s["batch"] for s in again["results"]}) == [1, 4, 16, 32]
    assert measure.measure(settings, path) == lines.load(path, measure.KIND)  # no engine is needed any more
    with pytest.raises(ValueError, match="give another --out"):
        measure.measure(Settings(**SHAPE, beside=("vanilla", "lynx")), path)


def test_time_decides_how_many_rounds_there_are_but_never_too_few(settings, tmp_path):
    _, calls = filled(memory_bound, settings, tmp_path / "a.jsonl")
    assert len(calls) == 4 * (MOST_ROUNDS + 1)  # a clock that stands still
    ticks = count(0, 1000)
    whole, calls = filled(memory_bound, settings, tmp_path / "b.jsonl", lambda: float(next(ticks)))
    assert len(calls) == 4 * (LEAST_ROUNDS + 1)
    assert {s["round"] for s in whole["results"]} == set(range(1, LEAST_ROUNDS + 1))  # the warm-up is left out


def test_a_row_alone_that_nobody_counted_has_its_own_experts():
    sample = {"before": None, "after": None, "decision_us": None}
    assert measure.completed([sample], 2, 8.0) == [{**sample, "before": 8.0, "after": 8.0, "decision_ms": 0.0}]
    seen = {"before": 8.0, "after": 5.0, "decision_us": 30.0}
    assert measure.completed([seen], 2, 8.0) == [{**seen, "decision_ms": 0.06}]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--policy", "prised"), "did you mean 'priced'"),
        (("--beside", "vanilla lynx:x=1"), "no knob 'x'"),
        (("--beside", "priced"), "is the policy itself"),
        (("--beside", " "), "names no policy"),
        (("--batch-sizes", "a"), "whole numbers between commas"),
        (("--batch-sizes", "0,4"), "at least 1"),
        (("--batch-sizes", "8"), "two or more"),
        (("--batch-sizes", "8,8,4"), "each once"),
        (("--seconds", "0"), "must be above 0"),
        (("--prompt", "0"), "1 token or more"),
        (("--layers", "2"), "--layers is for published shapes"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(args, says, folder: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "in_own_process", lambda *a, **k: pytest.fail("an engine was opened"))
    result = CliRunner().invoke(app, ["doctor", str(folder), "--out", str(tmp_path), *args])
    assert isinstance(result.exception, ValueError)
    assert says in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_requests_that_did_not_decode_together_are_no_measurement():
    measure.check_together(8, {"prefill": 1, "mixed": 0, "decode": 24, "single": 0})
    for steps in ({"prefill": 1, "mixed": 2}, {"prefill": 2, "mixed": 0}):
        with pytest.raises(ValueError, match="batch 8: the engine has no room"):
            measure.check_together(8, steps)


@pytest.mark.parametrize("asked", [{"compiled": True}, {"prompt": 500}])
def test_a_shape_is_eager_and_of_short_prompts(asked):
    with pytest.raises(ValueError, match="runs eager, with prompts of 487 tokens at most"):
        Settings(**SHAPE, **asked)


def test_a_dense_model_a_path_to_nowhere_and_no_vllm_are_one_line(folder: Path, tmp_path, monkeypatch):
    save_dense(tmp_path / "dense")

    def missing(*args, **kwargs):
        raise ValueError("vLLM cannot be imported (none); install it")

    monkeypatch.setattr(measure, "in_own_process", missing)
    for model, says in (
        (tmp_path / "dense", "is a dense model"),
        (tmp_path / "nowhere", "does not exist"),
        (folder, "vLLM cannot be imported"),
    ):
        result = CliRunner().invoke(app, ["doctor", f"{model}/", "--out", str(tmp_path / "out")])
        assert isinstance(result.exception, ValueError)
        assert says in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_table_formula_findings_and_picture_come_of_the_record(settings, tmp_path):
    path = tmp_path / "doctor.jsonl"
    whole, _ = filled(turning, settings, path)
    found = of_record(whole)
    rows = show.table(found)
    assert [len(row) for row in rows] == [len(show.HEAD)] * 4
    assert rows[-1][4] == "arithmetic"
    assert show.formula(found).startswith("step, ms = max(4 + 0.5 experts + 0 rows, 1 + 2 rows); off by 0.0 %")
    saved = json.loads(show.save_findings(whole, tmp_path / "doctor.json").read_text())
    assert saved["verdict"] == found["verdict"]
    assert saved["pays"] == found["pays"]
    result = CliRunner().invoke(app, ["plot", str(path)])
    assert result.exception is None
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.vllm
def test_a_tiny_model_is_measured_through_vllm(tmp_path, monkeypatch):
    args = [
        "doctor",
        save_model("qwen3_moe", tmp_path / "model"),
        "--out",
        str(tmp_path),
        "--batch-sizes",
        "1,2,8",
        "--seconds",
        "1",
    ]
    args += ["--beside", "vanilla priced:price=1"]
    result = CliRunner().invoke(app, args)
    assert result.exception is None, result.output
    whole = lines.load(tmp_path / "doctor.jsonl", "doctor")
    groups = {(s["batch"], s["policy"]) for s in whole["results"]}
    assert len(groups) == 9
    assert len(whole["results"]) >= 9 * LEAST_ROUNDS
    for sample in whole["results"]:
        assert 1 <= sample["after"] <= sample["before"] <= 32
        assert sample["tpot_ms"] > 0
        if sample["batch"] > 1 and sample["policy"] == "vanilla":
            assert sample["after"] == sample["before"]
    fewest = [s for s in whole["results"] if s["policy"] == "priced:price=1" and s["batch"] == 8]
    assert all(sample["after"] < sample["before"] and sample["decision_ms"] > 0 for sample in fewest)
    saved = json.loads((tmp_path / "doctor.json").read_text())
    assert f"Verdict: priced {saved['verdict']}." in " ".join(result.output.split())
    assert (tmp_path / "doctor.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(measure, "in_own_process", lambda *a, **k: pytest.fail("measured again"))
    assert CliRunner().invoke(app, args).exception is None
