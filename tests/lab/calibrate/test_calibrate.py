"""`lynx-moe calibrate` on a tiny model, and calibrated policies with its file."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lynx_moe.calibration.artifact import load
from lynx_moe.cli import app
from lynx_moe.lab.calibrate import measure as calibrate
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.lockstep import left_padded
from lynx_moe.lab.shared import lines
from lynx_moe.policies.contract.calibrated import DIMENSIONS


def test_one_file_serves_all_calibrated_policies(folder: Path, tmp_path: Path) -> None:
    file, runner = tmp_path / "tiny.safetensors", CliRunner()
    made = runner.invoke(app, ["calibrate", str(folder), "--sequences", "28", "-o", str(file)])
    assert made.exit_code == 0, made.output
    artifact = load(file)
    assert artifact.provenance.data == "testbed, split calibrate, 28 documents"
    assert f"{artifact.provenance.num_tokens} tokens" in made.output
    assert sorted(artifact.layers) == [0, 1]
    for layer in artifact.layers.values():
        assert set(layer) == set(DIMENSIONS) - {"sensitivity"}
        assert layer["load"].sum().item() == pytest.approx(4)

    specs = [f"{spec},data={file}" for spec in ("sere:num_primary=2,rho=0", "exfold:num_keep=6", "reap:num_keep=6")]
    options = ["--batch-sizes", "4", "--mixes", "mixed", "--sequences", "28", "--out", str(tmp_path)]
    shown = runner.invoke(app, ["fidelity", str(folder), "--policies", " ".join(specs), *options])
    assert shown.exit_code == 0, shown.output
    results = lines.load(tmp_path / "fidelity.jsonl", "fidelity")["results"]
    assert [line["policy"].partition(":")[0] for line in results] == ["sere", "exfold", "reap"]
    for line in results:
        assert line["after"] < line["before"]
        assert line["kl"] > 0


def test_sensitivities_are_measured_where_they_are_asked_for(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    options = ["--sequences", "14", "--sensitivity", "6", "-o", str(file)]
    made = CliRunner().invoke(app, ["calibrate", str(folder), *options])
    assert made.exit_code == 0, made.output
    assert "6 of 6 documents backwards" in made.output
    artifact = load(file)
    told = calibrate.by_layer(artifact)
    assert sorted(told) == [0, 1]
    for number, layer in artifact.layers.items():
        assert set(layer) == set(DIMENSIONS)
        assert layer["sensitivity"].min() <= told[number] <= layer["sensitivity"].max()
        assert f"{told[number]:.3g}" in made.output
    settings = fidelity.Settings(model=str(folder), batch_sizes=(2,), num_sequences=14, split="calibrate")
    model, _ = fidelity.open_model(settings, [])
    with pytest.raises(ValueError, match="what the way back needs"):
        calibrate.sensitivities(model, fidelity.documents(settings), 4, 10_000, print)
    again = calibrate.sensitivities(model, fidelity.documents(settings), 4, None, print)
    assert sorted(again) == [0, 1]


def test_two_passes_give_the_same_file(folder: Path, tmp_path: Path) -> None:
    settings = fidelity.Settings(model=str(folder), batch_sizes=(2,), num_sequences=14, split="calibrate")
    one, two = (calibrate.calibrate(settings, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    for number, layer in one.layers.items():
        for name, tensor in layer.items():
            assert torch.equal(tensor, two.layers[number][name])


def test_exercises_that_are_tested_on_are_refused(folder: Path, tmp_path: Path) -> None:
    for split in ("all", "tune", "test"):
        settings = fidelity.Settings(model=str(folder), batch_sizes=(2,), num_sequences=14, split=split)
        with pytest.raises(ValueError, match="split 'calibrate'"):
            calibrate.calibrate(settings, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_documents_share_a_forward_as_far_as_memory_allows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(rows))
        return left_padded(rows)

    monkeypatch.setattr(calibrate, "left_padded", padded)
    settings = fidelity.Settings(model=str(folder), batch_sizes=(2,), num_sequences=28, split="calibrate")
    calibrate.calibrate(settings, tmp_path / "a.safetensors")
    assert max(sizes) == calibrate.TOGETHER
    sizes.clear()
    calibrate.calibrate(settings, tmp_path / "b.safetensors", max_gib=0.004)
    assert 1 <= max(sizes) < calibrate.TOGETHER
    says = r"a document of \d+ tokens would take about .* \(logits .*, experts .*, statistics .*\).*lower --prefix or"
    with pytest.raises(ValueError, match=says):
        calibrate.calibrate(settings, tmp_path / "c.safetensors", max_gib=1e-5)
    assert not (tmp_path / "c.safetensors").exists()
