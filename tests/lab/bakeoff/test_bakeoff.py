"""The bakeoff on a tiny model: many policies in one forward are what each is alone; tuned here, told there."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moe import documents
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.calibration import artifact
from lynx_moe.cli import app
from lynx_moe.lab.bakeoff import cell, exact
from lynx_moe.lab.bakeoff import measure as bakeoff
from lynx_moe.lab.bakeoff.fronts import GAP, SAME, fronts
from lynx_moe.lab.bakeoff.together import together
from lynx_moe.lab.calibrate import measure as calibrate
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.lockstep import decode, decode_together
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import Document, batches
from lynx_moe.routing import RouterSpec

NAMES = ("oea", "random", "topk", "reap")


@pytest.fixture(scope="module")
def calibration(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "tiny.safetensors"
    given = fidelity.Settings(model=str(folder), batch_sizes=(2,), num_sequences=14, split="calibrate")
    calibrate.calibrate(given, file)
    return file


@pytest.fixture(scope="module")
def settings(folder: Path, calibration: Path) -> bakeoff.Settings:
    given: dict[str, Any] = {"batch_sizes": (2, 4), "mixes": ("mixed",), "num_sequences": 16}
    return bakeoff.Settings(model=str(folder), calibration=str(calibration), **given)


@pytest.fixture(scope="module")
def whole(settings: bakeoff.Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("bakeoff") / "bakeoff.jsonl"
    return path, bakeoff.measure(settings, path, NAMES)


def test_many_policies_in_one_forward_do_what_each_does_alone(folder: Path, calibration: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(1)
    documents = [Document("a", tuple(torch.randint(3, 900, (n % 7 + 1,)).tolist()), tuple(range(20, 27 + n)))
                 for n in range(6)]  # fmt: skip
    (batch,) = batches(documents, 6, "mixed", seed=0)
    specs = ["oea:k0=1", f"reap:num_keep=6,data={calibration}", "topk:k=2", "lynx", "random:num_keep=5"]
    alone = [lynx_moe.apply(model, spec) for spec in specs]
    expected = decode(model, batch, alone, "own")
    policy = together(specs)
    found = decode_together(model, batch, lynx_moe.apply(model, policy), len(specs) + 1)
    for run, one, other, loads in zip(alone, found, expected, policy.loads.means()[1:], strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
        assert loads == pytest.approx((run.stats().mean_before, run.stats().mean_after))
        assert loads[1] < loads[0]


def test_rows_that_do_not_share_out_are_refused() -> None:
    with pytest.raises(ValueError, match="7 rows cannot be shared out among 2"):
        together(["lynx"]).route(torch.randn(7, 8), RouterSpec(num_experts=8, top_k=2))


def test_only_settings_on_the_tune_front_are_tested_and_the_record_says_who_was_where(
    whole: tuple[Path, dict[str, Any]],
) -> None:
    results = [line for line in whole[1]["results"] if line["kind"] == "bakeoff"]
    for size in (2, 4):
        tuned, told = (bakeoff.of_cell(whole[1], split, size, "mixed") for split in ("tune", "test"))
        on = {setting["spec"] for one in fronts(tuned) for setting in one["settings"]}
        assert on < {line["spec"] for line in tuned}
        assert on <= {line["spec"] for line in told}
        kept = {line["spec"]: line["after"] / line["before"] for line in tuned}
        for method in {line["method"] for line in tuned}:
            mine = sorted(kept[line["spec"]] for line in told if line["method"] == method)
            every = sorted(
                kept[line["spec"]] for line in tuned if line["method"] == method and kept[line["spec"]] < SAME
            )
            for low, high in pairwise(mine):  # what is left out lies beside something that is not
                inner = [one for one in every if low < one < high]
                assert not inner or high - low <= GAP or min(inner[0] - low, high - inner[-1]) <= GAP
        ends = [line["method"] for line in told if kept[line["spec"]] >= SAME]
        assert sorted(ends) == sorted({line["method"] for line in tuned if kept[line["spec"]] >= SAME})  # one each
        assert (tuned[0]["num_sequences"], told[0]["num_sequences"]) == (8, 16)
    assert {line["policy"]: line["calibrated"] for line in results} == {
        "oea": False, "random": False, "topk": False, "reap": True}  # fmt: skip
    costs = Counter(line["policy"] for line in whole[1]["results"] if line["kind"] == "cost")
    assert costs == dict.fromkeys(NAMES, 1)
    assert all(line["decision_us"] > 0 for line in whole[1]["results"] if line["kind"] == "cost")


def test_a_killed_run_goes_on_and_a_new_policy_is_measured_alone(
    settings: bakeoff.Settings, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, before = whole
    kept = path.read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join(kept[: len(kept) // 2]) + "\n")
    again = bakeoff.measure(settings, tmp_path / "b.jsonl", NAMES)
    measured = [[line for line in one["results"] if line["kind"] == "bakeoff"] for one in (before, again)]
    key = lambda line: (line["split"], line["batch_size"], line["spec"])  # noqa: E731
    first, second = (sorted(one, key=key) for one in measured)
    assert list(map(key, first)) == list(map(key, second))
    for one, other in zip(first, second, strict=True):
        assert one["kl_by_sequence"] == pytest.approx(other["kl_by_sequence"], abs=1e-4)
        assert one["after"] == pytest.approx(other["after"])
    more = bakeoff.measure(settings, tmp_path / "b.jsonl", (*NAMES, "naee"))
    new = more["results"][len(again["results"]) :]
    assert {line["policy"] for line in new} == {"naee"}
    with pytest.raises(ValueError, match="num_sequences=16, now it is 12"):
        bakeoff.measure(bakeoff.Settings(**{**vars(settings), "num_sequences": 12}), path, NAMES)


def test_a_killed_cell_goes_on_behind_its_last_batch(
    settings: bakeoff.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, names = replace(settings, batch_sizes=(4,), calibration=None), ("topk", "oea")
    done: list[int] = []
    dies_at = -1

    def dying(*given: Any) -> Any:
        if len(done) == dies_at:
            raise KeyboardInterrupt
        done.append(given[3])
        return decode_together(*given)

    monkeypatch.setattr(cell, "decode_together", dying)
    whole = bakeoff.measure(given, tmp_path / "a.jsonl", names)
    calls = list(done)
    done.clear()
    dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        bakeoff.measure(given, tmp_path / "b.jsonl", names)
    assert (tmp_path / "b.pieces.jsonl").is_file()
    assert len(lines.load(tmp_path / "b.jsonl", "bakeoff")["results"]) < len(whole["results"])
    dies_at = -1
    again = bakeoff.measure(given, tmp_path / "b.jsonl", names)
    assert done == calls  # none of them twice
    first, second = ([one for one in each["results"] if one["kind"] == "bakeoff"] for each in (whole, again))
    assert first == second  # a piece is a piece, whenever it was made
    assert not (tmp_path / "b.pieces.jsonl").exists()


def test_too_little_memory_means_fewer_settings_at_a_time_and_then_a_refusal(
    settings: bakeoff.Settings, model: Any, tmp_path: Path
) -> None:
    cut, sizes = batches(documents(8), 4, "mixed", seed=0), memory.measured(model)
    largest = memory.largest(cut, sizes)

    def at_once(limit: int | None) -> int:
        return cell.settings_at_once(cell.Bench(model, sizes, limit, tmp_path, print), cut)

    for num in (2, 3, 9):  # the exact model among them
        needed = sum(sizes.need(largest, num, num).values())
        assert at_once(needed) == num - 1
        assert at_once(needed + 1) == num - 1
    assert at_once(None) == at_once(10**15) == cell.ROWS // 4 - 1
    says = r"batch 4 under one policy beside the exact model would take .*--max-memory"
    with pytest.raises(ValueError, match=says):
        at_once(sum(sizes.need(largest, 2, 2).values()) - 1)
    with pytest.raises(ValueError, match=says):
        bakeoff.measure(replace(settings, batch_sizes=(4,)), tmp_path / "b.jsonl", ["topk"], max_gib=1e-5)
    assert not (tmp_path / "b.jsonl").exists()


def test_a_line_has_the_true_token_s_log_likelihood(whole: tuple[Path, dict[str, Any]]) -> None:
    for line in whole[1]["results"]:
        if line["kind"] == "bakeoff":
            assert len(line["gain_by_sequence"]) == line["num_sequences"]
            assert line["gain_interval"][0] <= line["gain"] <= line["gain_interval"][1]
            assert line["exact"] < 0


def test_data_that_were_calibrated_on_are_refused(folder: Path, calibration: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(" ".join(f"day {n} after another" for n in range(4000)), encoding="utf-8")
    given = fidelity.Settings(model=str(folder), data=str(book), batch_sizes=(2,), num_sequences=14)
    calibrate.calibrate(given, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="measured on all of"):
        bakeoff.Settings(model=str(folder), data=str(book), calibration=str(tmp_path / "c.safetensors"))
    made = calibrate.calibrate(replace(given, split="calibrate", prefix=8, steps=8), tmp_path / "d.safetensors")
    bakeoff.Settings(model=str(folder), data=str(book), calibration=str(tmp_path / "d.safetensors"))
    older = replace(made.provenance, data=f"{book}, split calibrate, 14 documents")  # its windows lay in any split
    artifact.save(replace(made, provenance=older), tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="splits of a file overlapped"):
        bakeoff.Settings(model=str(folder), data=str(book), calibration=str(tmp_path / "e.safetensors"))


def test_exact_match_is_of_what_no_other_setting_beats_on_tune(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(exact.evaluation, "apart", lambda *given, **_: asked.extend(given))
    exact.exact_match(whole[1], tmp_path / "eval.jsonl", 7)
    settings, specs, path = asked
    assert (settings.limit, settings.concurrency, path) == (7, 16, tmp_path / "eval.jsonl")
    cell = {line["spec"]: line for line in bakeoff.of_cell(whole[1], "tune", 4, "mixed") if line["policy"] != "random"}
    assert specs[0] == "vanilla"
    for spec in specs[1:]:
        kept, kl = cell[spec]["after"] / cell[spec]["before"], cell[spec]["kl"]
        assert not any(one["after"] / one["before"] < kept and one["kl"] < kl for one in cell.values())
    assert len(specs) > 2


def test_the_command_makes_a_page_and_tables(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    path, record = whole
    options = ["--batch-sizes", "2,4", "--mixes", "mixed", "--sequences", "16", "--policies", " ".join(NAMES)]
    options += ["--calibration", record["settings"]["calibration"], "--against", "topk", "--out", str(path.parent)]
    shown = CliRunner().invoke(app, ["bakeoff", record["settings"]["model"], *options])
    assert shown.exit_code == 0, shown.output
    page = path.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "True token&#39;s log-likelihood against the exact model&#39;s" in page
    assert (path.parent / "likelihood.png").stat().st_size > 10_000
    assert "batch 4, mixed" in page
    assert "data=" not in page.split("<h2>", 1)[1]
    assert (path.parent / "fronts.png").stat().st_size > 10_000
    tables = CliRunner().invoke(app, ["table", str(path)]).output
    assert "| method | 30 % | 40 % | 50 % |" in tables
    again = CliRunner().invoke(app, ["plot", str(path), "--out", str(tmp_path / "again.html")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "half.png").is_file()
    untested = [line for line in record["results"] if line.get("split") == "tune"]
    lines.save(record | {"results": untested}, tmp_path / "c.jsonl")
    assert "no setting on split test" in str(CliRunner().invoke(app, ["plot", str(tmp_path / "c.jsonl")]).exception)
    assert json.loads(path.read_text().splitlines()[0])["kind"] == "bakeoff"
