"""Summaries, intervals, tables and pictures, from made-up samples whose answers are known."""

from pathlib import Path

import pytest

from lynx_moe.lab.demo.measure import verdict
from lynx_moe.lab.shared import plots, record, tables
from lynx_moe.lab.shared.intervals import mean_difference, proportion
from lynx_moe.lab.shared.scores import paired as summarise_quality
from lynx_moe.lab.speed.measure import summarise

SAMPLES = [
    {"batch": batch, "policy": policy, "tpot_ms": tpot}
    | (
        {"before": 40.0, "after": after, "decision_us": 200.0}
        if batch > 1
        else dict.fromkeys(("before", "after", "decision_us"))
    )
    for batch, factor in ((1, 1.0), (8, 2.0))
    for policy, after, tpots in (("vanilla", 40.0, (10, 11, 30)), ("lynx", 16.0, (9, 10, 15)))
    for tpot in (factor * t for t in tpots)
]
QUALITY = [
    {"policy": p, "spec": p, "right": right, "before": 20.0, "after": after,
     "after_by_layer": [after, after], "before_by_layer": [20.0, 20.0]}
    for p, right, after in (("vanilla", [True] * 8 + [False] * 2, 20.0), ("lynx", [True] * 7 + [False] * 3, 9.0))
]  # fmt: skip


def test_a_summary_takes_medians_and_pairs_the_rounds() -> None:
    rows = summarise(SAMPLES, ["vanilla", "lynx"], [1, 8])
    eight = rows[3]
    assert (eight["batch"], eight["policy"], eight["tpot_ms"], eight["tpot_range_ms"]) == (8, "lynx", 20, [18, 30])
    assert eight["speedup"] == pytest.approx(10 / 9)  # of 10/9, 11/10 and 30/15
    assert eight["speedup_range"] == pytest.approx([11 / 10, 2.0])
    assert eight["tokens_per_s"] == 400
    assert rows[1]["after"] is None  # a policy that passes one row by counts nothing of it
    said = verdict(rows, layers=2)
    assert "lynx: faster in every round at batch 8. The decision takes 200 µs a layer at batch 8 (2.0 % of" in said


def test_intervals_hold_the_estimate_and_narrow_with_n() -> None:
    low, high = proportion([True] * 8 + [False] * 2)
    assert low < 0.8 < high
    wide, narrow = proportion([True, False] * 10), proportion([True, False] * 1000)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 5
    assert mean_difference([1, 0, 1], [1, 0, 1]) == [0.0, 0.0]
    low, high = mean_difference([1, 1, 0, 1] * 20, [1, 0, 0, 1] * 20)
    assert 0 < low < 0.25 < high


def test_the_quality_difference_is_paired() -> None:
    rows = summarise_quality(QUALITY)
    assert rows[1]["difference"] == pytest.approx(-0.1)
    assert rows[0]["difference_interval"] == [0.0, 0.0]
    assert "80.0 [" in tables.quality_rows(rows)[0][1]


def test_a_demo_record_is_saved_loaded_and_drawn_again(tmp_path: Path) -> None:
    summary = summarise(SAMPLES, ["vanilla", "lynx"], [1, 8])
    speed = {"model": "x, random", "policies": ["vanilla", "lynx"], "batch_sizes": [1, 8], "summary": summary}
    speed["environment"] = record.environment()
    quality = {
        "model": "y",
        "concurrency": 4,
        "tasks": ["t"] * 10,
        "results": QUALITY,
        "summary": summarise_quality(QUALITY),
    }
    path = record.save({"kind": "demo", "speed": speed, "quality": quality}, tmp_path / "a" / "demo.json")
    picture = plots.demo(record.load(path), tmp_path / "demo.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert tables.markdown(tables.SPEED_HEAD, tables.speed_rows(speed["summary"])).count("\n") == 5
    path.write_text("{")
    with pytest.raises(ValueError, match="not a readable record"):
        record.load(path)
