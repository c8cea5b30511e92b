"""Lines and rows made from results by hand."""

from typing import Any

import pytest

from lynx_moe.lab.evaluation import harness_results
from lynx_moe.lab.evaluation import plot as plot_evaluation
from lynx_moe.lab.shared import scores, tables


def results(**items: list[float]) -> dict[str, Any]:
    """What the harness returns for tasks with the given exact matches per item, beside a BLEU of all items together."""
    hashes = {"doc_hash": "d", "prompt_hash": "p", "filter": "none"}
    samples = {
        task: [{"doc_id": n, "exact_match": v, "bleu": ("right", "written"), **hashes} for n, v in enumerate(values)]
        for task, values in items.items()
    }
    means = {
        task: {"alias": task, "exact_match,none": sum(v) / len(v), "exact_match_stderr,none": 0.1}
        | {"bleu,none": 30.0, "bleu_stderr,none": 1.0}
        for task, v in items.items()
    }
    return {"samples": samples, "results": means, "n-samples": {t: {"effective": len(v)} for t, v in items.items()}}


def worker(steps: int, before: int, after: int) -> dict[str, Any]:
    layers = [{"name": f"layer {n}", "decode": {"steps": steps, "before": before, "after": after}} for n in range(3)]
    return {"steps": {"decode": steps}, "layers": layers}


def lines(policy: str, after: int, **items: list[float]) -> list[scores.Line]:
    parts = [([task], [worker(10, 300, after)]) for task in items]
    return harness_results.lines(policy, policy, results(**items), parts)


def test_a_line_holds_items_intervals_and_experts() -> None:
    (line,) = lines("vanilla", 300, sort=[1, 0, 1, 1])
    metric = line["metrics"]["exact_match,none"]
    assert metric["items"] == [1, 0, 1, 1]
    assert metric["value"] == 0.75
    assert metric["interval"][0] < 0.75 < metric["interval"][1] < 1
    assert (line["n"], line["before"], line["after"], line["after_by_layer"]) == (4, 30, 30, [30, 30, 30])
    assert line["metrics"]["bleu,none"] == {"value": 30.0, "interval": [pytest.approx(28.04), 31.96], "items": None}
    assert scores.main_metric(line) == "exact_match,none"


def test_a_policy_paired_with_itself_differs_by_zero_and_items_decide_otherwise() -> None:
    base, same = lines("vanilla", 300, sort=[1, 0, 1, 1]), lines("lynx", 200, sort=[1, 0, 1, 1])
    worse = lines("random", 100, sort=[0, 0, 1, 0])
    found = scores.compare([*base, *same, *worse])
    pairs = [line["metrics"]["exact_match,none"] for line in found]
    assert [p["difference"] for p in pairs] == [0, 0, -0.5]
    assert [p["difference_interval"] for p in pairs[:2]] == [[0, 0], [0, 0]]
    assert pairs[2]["difference_interval"][0] < -0.5 < pairs[2]["difference_interval"][1]
    assert {line["baseline"] for line in found} == {"vanilla"}


def test_other_questions_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="different questions"):
        scores.compare([*lines("vanilla", 300, sort=[1, 0]), *lines("lynx", 200, sort=[1, 0, 1])])


def test_the_mean_gives_each_task_the_same_weight(tmp_path: Any) -> None:
    base = lines("vanilla", 300, sort=[1, 1, 1, 1, 1, 1], walk=[0, 1])
    lynx = lines("lynx", 150, sort=[1, 1, 1, 1, 1, 1], walk=[0, 0])
    found = scores.compare([*base, *lynx])
    rows = scores.overall(found)
    assert [row["value"] for row in rows] == pytest.approx([0.75, 0.5])
    assert rows[1]["difference"] == pytest.approx(-0.25)
    assert rows[1]["difference_interval"][0] <= -0.25 <= rows[1]["difference_interval"][1]
    assert [row["after"] for row in rows] == [30, 15]
    head, cells = tables.task_table(found)
    assert head == ("task", "n", "vanilla", "lynx")
    assert cells[2][0] == "walk\nexact_match,none"
    assert cells[2][3].splitlines()[1].startswith("-50.0 [")
    record = {"settings": {"model": "m", "concurrency": 2, "mix": "homogeneous"}, "results": found}
    record["environment"] = {"cpu": "c", "cores": 1, "date": "2026-01-01T00:00:00"}
    assert plot_evaluation.draw(record, tmp_path / "picture.png").stat().st_size > 10_000


def test_a_task_that_decoded_nothing_has_no_place_in_the_mean() -> None:
    found = harness_results.lines("vanilla", "vanilla", results(read=[1, 0]), [])
    assert found[0]["after"] is None
    assert scores.overall(scores.compare(found)) == []


def test_the_control_loads_as_many_experts_as_the_second_policy() -> None:
    base, lynx = lines("vanilla", 300, sort=[1, 0]), lines("lynx", 176, sort=[1, 0])
    assert scores.control(scores.compare([*base, *lynx])) == "random:num_keep=18"
    with pytest.raises(ValueError, match="--control needs a second policy"):
        scores.control(scores.compare(base))


def test_the_length_of_answers_stands_beside_accuracy_with_its_paired_difference(tmp_path: Any) -> None:
    asked = results(sort=[1, 0, 1, 1], walk=[0, 1])
    counted = [(["sort", "walk"], [worker(10, 300, 200)])]
    long = {"sort": {0: [4], 1: [6, 8], 2: [5], 3: [3]}, "walk": {0: [20], 1: [30]}}
    short = {"sort": {n: [2] for n in range(4)}, "walk": {0: [10], 1: [30]}}
    base, other = (
        harness_results.lines(name, name, asked, counted, lengths, sampled)
        for name, lengths, sampled in (("vanilla", long, []), ("lynx", short, ["walk"]))
    )
    assert base[0]["length"]["items"] == [4, 7, 5, 3]
    assert base[0]["length"]["value"] == pytest.approx(19 / 4)
    found = scores.compare([*base, *other])
    assert found[2]["length"]["difference"] == pytest.approx(2 - 19 / 4)
    assert found[2]["length"]["difference_interval"][1] < 0
    rows = scores.overall(found)
    assert [row["length"] for row in rows] == pytest.approx([(19 / 4 + 25) / 2, (2 + 20) / 2])
    assert rows[1]["length_difference"] == pytest.approx(11 - (19 / 4 + 25) / 2)
    page = tables.evaluation_markdown(found)
    assert "| sort<br>output tokens, greedy | 4 | 4.8 [" in page
    assert "| walk<br>output tokens, sampled | 2 | 25.0 [" in page
    assert "<br>-2.8 [" in page
    assert "| distinct experts | output tokens |" in page
    assert "| 11.0, -3.9 [" in page
    record = {"settings": {"model": "m", "concurrency": 2, "mix": "homogeneous"}, "results": found}
    record["environment"] = {"cpu": "c", "cores": 1, "date": "2026-01-01T00:00:00"}
    assert plot_evaluation.draw(record, tmp_path / "picture.png").stat().st_size > 10_000


def test_where_one_policy_s_lengths_are_unknown_none_are_told() -> None:
    """As of a record that was begun before lengths were kept."""
    asked, counted = results(sort=[1, 0]), [(["sort"], [worker(10, 300, 200)])]
    new = harness_results.lines("lynx", "lynx", asked, counted, {"sort": {0: [1], 1: [2]}})
    old = [{k: v for k, v in line.items() if k != "length"} for line in lines("vanilla", 300, sort=[1, 0])]
    found = scores.compare([*old, *new])
    assert not any("length" in row for row in scores.overall(found))
    assert "output tokens" not in tables.evaluation_markdown(found)


def test_markdown_holds_a_row_per_task_and_metric_and_the_means() -> None:
    found = scores.compare(
        [*lines("vanilla", 300, sort=[1, 0], walk=[1, 1]), *lines("lynx", 150, sort=[1, 1], walk=[1, 1])]
    )
    page = tables.evaluation_markdown(found).splitlines()
    assert page[0] == "| task | n | vanilla | lynx |"
    assert all(line.count("|") == 5 for line in page[:6])
    assert page[2].startswith("| sort<br>exact_match,none | 2 | 50.0 [")
    assert page[-1].startswith("| lynx | 100.0 [")
    assert page[-1].endswith("| 30.0 → 15.0 |")
