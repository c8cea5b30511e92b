"""Lockstep decoding of a tiny random model: what must be exact is exact, and damage grows with what a policy drops."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moe import documents, save_dense
from typer.testing import CliRunner

import lynx_moe
from lynx_moe.cli import app
from lynx_moe.engines.transformers import cache
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.lockstep import decode, left_padded, prefill
from lynx_moe.lab.shared import lines, tables
from lynx_moe.lab.shared.documents import batches

POLICIES = ("vanilla", "random:num_keep=12", "random:num_keep=4")


@pytest.mark.parametrize("cache", ["own", "exact"])
def test_vanilla_moves_nothing_and_the_exact_run_is_the_plain_forward(model: Any, cache: str) -> None:
    (batch,) = batches(documents(5), 5, "mixed", seed=0)
    run = lynx_moe.apply(model, "vanilla")
    (effect,) = decode(model, batch, [run], cache)
    assert effect.kl.shape == (6, 5)
    assert not effect.kl.any()
    assert effect.agree.all()
    assert not effect.gain.any()
    for column, member in enumerate(batch.members):
        ids = torch.tensor([[*member.prefix, *member.rest]])
        with torch.inference_mode():
            expected = model(ids).logits.log_softmax(-1)[0, len(member.prefix) : -1]
        told = expected.gather(1, torch.tensor(member.rest[1:])[:, None])[:, 0]
        torch.testing.assert_close(effect.exact[:, column], told, atol=1e-4, rtol=1e-4)
    assert run.stats().steps["decode"] == 6
    assert run.stats().steps["prefill"] == 0


def test_damage_grows_with_what_is_dropped_and_adds_up_in_the_policys_own_cache(model: Any) -> None:
    cut = batches(documents(48, steps=12), 8, "mixed", seed=0)
    runs = [lynx_moe.apply(model, policy) for policy in POLICIES]
    own = [decode(model, batch, runs, "own") for batch in cut]
    loads = [run.stats().mean_after for run in runs]
    assert loads[0] > loads[1] > loads[2] == 4
    exact = [decode(model, batch, runs, "exact") for batch in cut]
    kl = torch.stack([torch.stack([effect.kl for effect in effects]) for effects in own]).mean(0)  # policy, step, row
    kl_exact = torch.stack([torch.stack([effect.kl for effect in effects]) for effects in exact]).mean(0)
    assert (kl >= -1e-6).all()
    assert kl[0].max() == 0 < 2 * kl[1].mean() < kl[2].mean()
    torch.testing.assert_close(kl[:, 0], kl_exact[:, 0])  # nothing has been written yet
    assert kl[2, 1:].mean() > kl_exact[2, 1:].mean()


def settings(folder: Path, **more: Any) -> fidelity.Settings:
    given = {"model": str(folder), "batch_sizes": (2, 3), "num_sequences": 14, "mixes": ("mixed",)}
    return fidelity.Settings(**{**given, **more})


def test_two_runs_with_one_seed_are_identical_and_an_interrupted_one_goes_on(folder: Path, tmp_path: Path) -> None:
    first = fidelity.measure(settings(folder), POLICIES, tmp_path / "a.jsonl")
    again = fidelity.measure(settings(folder), POLICIES, tmp_path / "b.jsonl")
    assert first["results"] == again["results"]
    assert len(first["results"]) == 2 * len(POLICIES)
    for line in first["results"]:
        assert line["num_sequences"] == len(line["kl_by_sequence"]) == len(line["groups"])
        assert line["num_tokens"] == sum(line["steps_by_sequence"])
        assert line["kl_interval"][0] <= line["kl"] <= line["kl_interval"][1]
    whole = (tmp_path / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b.jsonl").write_text("".join(whole[: 1 + len(POLICIES)]))
    said: list[str] = []
    fidelity.measure(settings(folder), POLICIES, tmp_path / "b.jsonl", advance=said.append)
    assert [line.split(":")[0] for line in said] == ["loading the model", "1 of 1"]
    assert lines.load(tmp_path / "b.jsonl", "fidelity")["results"] == first["results"]
    with pytest.raises(ValueError, match="seed=0, now it is 1"):
        fidelity.measure(replace(settings(folder), seed=1), POLICIES, tmp_path / "a.jsonl")
    other = fidelity.measure(settings(folder, seed=1), POLICIES, tmp_path / "c.jsonl")
    assert other["results"] != first["results"]


def test_a_killed_cell_goes_on_behind_its_last_batch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(folder, batch_sizes=(2,))
    whole = fidelity.measure(given, POLICIES, tmp_path / "a.jsonl")
    decoded: list[int] = []

    def dying(model: Any, batch: Any, *rest: Any) -> Any:
        if len(decoded) == 3:
            raise KeyboardInterrupt
        decoded.append(batch.num_steps)
        return decode(model, batch, *rest)

    monkeypatch.setattr(fidelity, "decode", dying)
    with pytest.raises(KeyboardInterrupt):
        fidelity.measure(given, POLICIES, tmp_path / "b.jsonl")
    assert lines.load(tmp_path / "b.jsonl", "fidelity")["results"] == []
    with pytest.raises(ValueError, match="seed=0, now it is 1"):
        fidelity.measure(replace(given, seed=1), POLICIES, tmp_path / "b.jsonl")
    decoded.append(0)  # past the one at which it dies
    again = fidelity.measure(given, POLICIES, tmp_path / "b.jsonl")
    assert len(decoded) == 1 + 7  # batches of 2 out of 14, none of them twice
    assert again["results"] == whole["results"]
    assert [file.name for file in tmp_path.iterdir() if "pieces" in file.name] == []


def test_what_takes_too_much_memory_is_refused_before_it_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "decode", lambda *_: pytest.fail("it was decoded"))
    says = (
        r"batch 3 under 3 policies would take about .* GiB beside the model \(caches .*\), and 0.0 may be used; lower "
        "--batch-sizes, --prefix or --steps, name fewer --policies, take --dtype bfloat16, or raise --max-memory"
    )
    with pytest.raises(ValueError, match=says):
        fidelity.measure(settings(folder, batch_sizes=(3,)), POLICIES, tmp_path / "a.jsonl", max_gib=1e-4)
    assert not list(tmp_path.iterdir())


def test_the_estimate_counts_every_cache_as_it_really_is(model: Any) -> None:
    sizes = memory.measured(model)
    (batch,) = batches(documents(5), 5, "mixed", seed=0)
    ids_BL, mask_BL = left_padded([member.prefix for member in batch.members])
    held = cache.held_bytes(prefill(model, ids_BL, mask_BL))
    config = model.config
    assert held == 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * ids_BL.numel()
    assert 5 * ids_BL.shape[1] * sizes.token == pytest.approx(held)
    assert sizes.fixed == 0
    one, many = (sizes.need(batch, num)["caches"] for num in (1, 11))
    ended = held / ids_BL.shape[1] * (ids_BL.shape[1] + batch.num_steps + 1)
    assert many - one == pytest.approx(10 * ended, abs=10)
    assert sizes.need(batch, 1, 7)["logits"] == 7 * sizes.need(batch, 1, 1)["logits"] == 7 * 5 * 12 * config.vocab_size


def test_the_table_has_log_likelihood_and_perplexity(folder: Path, tmp_path: Path) -> None:
    whole = fidelity.measure(settings(folder, batch_sizes=(2,)), POLICIES, tmp_path / "a.jsonl")
    row = dict(zip(tables.FIDELITY_HEAD, tables.fidelity_rows(whole["results"])[2], strict=True))
    line = whole["results"][2]
    assert row["log-likelihood, mnats"].startswith(f"{1000 * line['gain']:+.1f}")
    told = [float(number) for number in row["perplexity"].split(" → ")]
    assert told == pytest.approx([math.exp(-line["exact"]), math.exp(-line["exact"] - line["gain"])], rel=1e-3)
    assert told[1] > told[0]


def test_the_command_shows_a_table_a_picture_and_markdown(folder: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    options = [
        "--policies",
        "lynx random:num_keep=4",
        "--batch-sizes",
        "2",
        "--sequences",
        "28",
        "--caches",
        "own,exact",
    ]
    shown = runner.invoke(app, ["fidelity", str(folder), *options, "--out", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "fidelity.png").stat().st_size > 10_000
    assert "policies read the cache they wrote" in " ".join(shown.output.split())
    page = runner.invoke(app, ["table", str(tmp_path / "fidelity.jsonl")]).output
    assert f"| {' | '.join(tables.FIDELITY_HEAD)} |" in page
    assert page.count("| random:num_keep=4 |") == 4
    drawn = runner.invoke(app, ["plot", str(tmp_path / "fidelity.jsonl"), "--out", str(tmp_path / "again.png")])
    assert drawn.exit_code == 0
    assert (tmp_path / "again.png").is_file()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_sizes": (0, 4)}, "each 1 or more"),
        ({"batch_sizes": ()}, "each 1 or more"),
        ({"batch_sizes": (15,)}, "needs more than 14 sequences"),
        ({"mixes": ("both",)}, "one, mixed"),
        ({"caches": ()}, "own, exact"),
        ({"steps": 0}, "1 or more"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        settings(Path("m"), **change)


def test_a_dense_model_missing_weights_and_a_corrupt_record_are_named(folder: Path, tmp_path: Path) -> None:
    save_dense(tmp_path / "dense")
    with pytest.raises(ValueError, match="has no MoE layer"):
        fidelity.measure(settings(tmp_path / "dense"), ["lynx"], tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="transformers cannot load"):
        fidelity.measure(settings(tmp_path / "none"), ["lynx"], tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()
    (tmp_path / "b.jsonl").write_text(json.dumps({"kind": "fidelity"}) + "\n")
    with pytest.raises(ValueError, match="not a readable record"):
        fidelity.measure(settings(folder), ["lynx"], tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="each of them once"):
        fidelity.measure(settings(folder), [], tmp_path / "a.jsonl")
