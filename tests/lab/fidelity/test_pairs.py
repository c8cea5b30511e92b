"""Twins with and without load balancing, from records that are written here."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lynx_moe.cli import app
from lynx_moe.lab.fidelity import pairs
from lynx_moe.lab.fidelity.pairs import UNBALANCED
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.scores import compare

ENVIRONMENT = {"cpu": "test", "cores": 1, "date": "2026-11-23"}
TEXT = {"groups": ["a", "a", "b", "b"], "steps_by_sequence": [1, 3, 2, 2]}


def write(folder: Path, kind: str, name: str, results: list[dict[str, Any]]) -> None:
    whole = {"kind": kind, "settings": {"model": folder.name}, "environment": ENVIRONMENT, "results": results}
    lines.save(whole, folder / f"{name}.jsonl")


def decoded(kl: list[float], before: float, after: float, **more: Any) -> dict[str, Any]:
    """A line of a fidelity record."""
    mean = sum(value * steps for value, steps in zip(kl, TEXT["steps_by_sequence"], strict=True)) / 8
    edges = {"kl_interval": [min(kl), max(kl)], "agree": 1.0}
    line = {"policy": "lynx", "batch_size": 4, "mix": "mixed", "cache": "own", "num_tokens": 8, **TEXT, **edges}
    return line | {"kl": mean, "kl_by_sequence": kl, "before": before, "after": after} | more


def answered(policy: str, items: list[float], questions: str = "same") -> dict[str, Any]:
    """A line of an evaluation record."""
    value = {"value": sum(items) / len(items), "interval": None, "items": items}
    line = {"task": "sort", "policy": policy, "spec": policy, "n": len(items), "metrics": {"exact": value}}
    return line | {"questions": questions, "decode_steps": 5, "before": 8.0, "after": 4.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One pair: the twin loads less, loses more, and its answers fall from 4 to 2 right ones; its double's do not."""
    write(tmp_path / "small", "fidelity", "fidelity", [decoded([0.001, 0.003, 0.002, 0.002], 8.0, 4.0)])
    twin = [decoded([0.002, 0.004, 0.003, 0.003], 6.0, 4.5), decoded([9.0] * 4, 9.0, 9.0, mix="one")]
    write(tmp_path / f"small{UNBALANCED}", "fidelity", "fidelity", twin)
    right, half = [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]
    for name, items in (("small", right), (f"small{UNBALANCED}", half)):
        write(tmp_path / name, "evaluation", "eval", compare([answered("vanilla", right), answered("lynx", items)]))
    write(tmp_path / f"alone{UNBALANCED}", "fidelity", "fidelity", twin)
    return tmp_path


def test_the_gap_is_the_twins_figure_less_the_balanced_ones(folder: Path) -> None:
    (pair,) = pairs.load(folder)
    found = pairs.gap(pair)
    assert (pair["name"], pair["policy"]) == ("small", "lynx")
    assert found["kept"] == pytest.approx(4.5 / 6 - 4 / 8)
    assert found["kl"] == pytest.approx(0.001)
    assert found["kl_interval"] == pytest.approx([0.001, 0.001])  # every sequence differs by as much
    assert found["exact"] == pytest.approx(-0.5)
    assert found["exact_interval"][0] == pytest.approx(-1)
    assert found["exact_interval"][1] == pytest.approx(0)


def test_the_mean_over_families_gives_each_the_same_weight(folder: Path) -> None:
    (pair,) = pairs.load(folder)
    still = pair | {"unbalanced": pair["balanced"]}
    found = pairs.gap(pair, still)
    assert found["kept"] == pytest.approx(0.125)
    assert found["kl"] == pytest.approx(0.0005)
    assert found["kl_interval"][0] < 0.0005 < found["kl_interval"][1]
    assert found["exact"] == pytest.approx(-0.25)


def test_the_commands_print_both_tables_and_draw_the_picture(folder: Path) -> None:
    runner = CliRunner()
    page = runner.invoke(app, ["table", str(folder)], catch_exceptions=False).output
    assert "| small-unbalanced | `lynx` | 3.25 [2.00, 4.00] | 100.0 | 6.0 → 4.5 | 75 |" in page
    assert "| small | `lynx` | +25 | +1.00 [+1.00, +1.00] | -50.0 [-100.0, +0.0] |" in page
    assert "| mean | `lynx` | +25 |" in page
    assert "alone" not in page
    assert runner.invoke(app, ["plot", str(folder)], catch_exceptions=False).exit_code == 0
    assert (folder / "pairs.png").stat().st_size > 10_000


def test_without_evaluations_only_the_accuracy_is_missing(folder: Path) -> None:
    (folder / "small" / "eval.jsonl").unlink()
    (pair,) = pairs.load(folder)
    assert pairs.gap(pair)["exact"] is None
    assert "| small | `lynx` | +25 | +1.00 [+1.00, +1.00] |  |" in pairs.page(folder)


def test_pairs_of_other_text_or_items_and_folders_without_pairs_are_refused(
    folder: Path, tmp_path_factory: Any
) -> None:
    results = compare([answered(policy, [1.0, 1.0], "other") for policy in ("vanilla", "lynx")])
    write(folder / "small", "evaluation", "eval", results)
    with pytest.raises(ValueError, match="small and its twin were asked different things"):
        pairs.load(folder)
    (folder / "small" / "eval.jsonl").unlink()
    other = decoded([0.001, 0.003, 0.002, 0.002], 8.0, 4.0, groups=["a", "a", "a", "b"])
    write(folder / "small", "fidelity", "fidelity", [other])
    with pytest.raises(ValueError, match="small and its twin were asked different things"):
        pairs.load(folder)
    with pytest.raises(ValueError, match="holds no pair"):
        pairs.load(tmp_path_factory.mktemp("empty"))
