"""Rows of several prices in one batch: what each of them is paired with, and that prices reach the rows they are of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moe import documents
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.cli import app
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import tiers
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import batches
from lynx_moe.routing import Rows

PRICES = {"exact": 0.0, "0.05": 0.05, "0.5": 0.5}


def test_every_row_is_in_every_tier_once_and_tiers_are_of_one_size() -> None:
    turns = [tiers.dealt(8, 3, turn) for turn in range(3)]
    assert all(sorted(places) == [0, 1, 2] for places in zip(*turns, strict=True))
    assert turns[0] == [0, 1, 2, 0, 1, 2, 0, 1]


def test_a_tier_among_its_like_is_that_policy_and_an_exact_row_loses_nothing(model: Any) -> None:
    cut = batches(documents(24), 6, "mixed", seed=0)
    found = {line["tier"]: line for line in tiers.compared(model, cut, "priced", PRICES, "own")}
    assert list(found) == list(PRICES)
    for name, price in PRICES.items():
        run = lynx_moe.apply(model, f"priced:price={price}")
        expected = [value for batch in cut for value in decode(model, batch, [run], "own")[0].kl.mean(0).tolist()]
        assert found[name]["alike_by_sequence"] == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert found[name]["alike_after"] == pytest.approx(run.stats().mean_after)
    assert found["exact"]["kl"] < 1e-6 < 1e-3 < found["0.05"]["kl"] < found["0.5"]["kl"]  # rounding, and harm
    for line in found.values():
        pairs = zip(line["kl_by_sequence"], line["alike_by_sequence"], line["difference_by_sequence"], strict=True)
        assert all(gap == pytest.approx(kl - alike, abs=1e-8) for kl, alike, gap in pairs)
        low, high = line["difference_interval"]
        assert low <= line["difference"] <= high
        assert found["0.5"]["alike_after"] < line["after"] < line["before"]


def test_a_sequence_s_figure_is_of_the_turn_in_which_it_had_the_tier(model: Any) -> None:
    cut = batches(documents(5), 5, "mixed", seed=0)
    price_B = torch.tensor([list(PRICES.values())[tier] for tier in tiers.dealt(5, 3, 1)])
    run = lynx_moe.apply(model, "priced")
    run.rows = Rows(price=price_B)
    (effect,) = decode(model, cut[0], [run], "own")
    found = tiers.compared(model, cut, "priced", PRICES, "own")
    for row, tier in enumerate(tiers.dealt(5, 3, 1)):
        expected = float(effect.kl[:, row].mean())
        assert found[tier]["kl_by_sequence"][row] == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_command_shows_and_keeps_a_record_that_goes_on(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    options = ["--tiers", "0.05 exact", "--batch-sizes", "2", "--sequences", "28", "--out", str(tmp_path)]
    shown = runner.invoke(app, ["fidelity", str(folder), "--mixes", "mixed", *options])
    assert shown.exit_code == 0, shown.output
    file = tmp_path / "tiers.jsonl"
    page = runner.invoke(app, ["table", str(file)], catch_exceptions=False).output
    assert f"| {' | '.join(tiers.HEAD)} |" in page
    assert page.count("| 2 mixed | priced | 0.05 |") == page.count("| 2 mixed | priced | exact |") == 1
    before = file.read_text().splitlines()
    file.write_text("\n".join(before) + "\n")
    more = runner.invoke(app, ["fidelity", str(folder), "--mixes", "mixed", *options])
    assert "loading the model" not in more.output  # all of it is there
    assert len(lines.load(file, "tiers")["results"]) == 2
    other = runner.invoke(app, ["fidelity", str(folder), "--mixes", "mixed", *options[2:], "--tiers", "0.1 exact"])
    assert other.exit_code != 0
    assert "tiers=" in str(other.exception)
    small = runner.invoke(app, ["fidelity", str(folder), *options[:-1], str(tmp_path / "b"), "--max-memory", "1e-6"])
    assert "batch 2 under 4 policies would take about" in str(small.exception)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.01", "two tiers or more"),
        ("0.01 0.010", "each of them once"),
        ("exact 0", "each of them once"),
        ("-0.1 0.1", "0 .exact. or more, and finite"),
        ("nan 0.1", "0 .exact. or more, and finite"),
        ("inf 0.1", "0 .exact. or more, and finite"),
        ("fast exact", "give prices and 'exact' between spaces"),
    ],
)
def test_bad_tiers_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiers.tiers_of(text)


def test_policies_without_prices_and_batches_without_room_are_refused(folder: Path, tmp_path: Path) -> None:
    settings = fidelity.Settings(model=str(folder), batch_sizes=(4,), num_sequences=14)
    for spec in ("lynx", "priced:num_keep=8"):
        with pytest.raises(ValueError, match="knows none; name a policy that does"):
            tiers.measure(settings, ["priced", spec], PRICES, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no row for each of 3 tiers"):
        tiers.measure(replace(settings, batch_sizes=(2, 4)), ["priced"], PRICES, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="each of them once"):
        tiers.measure(settings, ["priced", "priced"], PRICES, tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="no group has 4 sequences"):
        tiers.measure(settings, ["priced"], PRICES, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
