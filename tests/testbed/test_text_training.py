"""*text*: rows, the schedule that may be ended early, pieces of a batch, the card; on a tiny model."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lynx_moe.testbed.cli import app
from lynx_moe.testbed.text import held_out
from lynx_moe.testbed.text.card import write_model
from lynx_moe.testbed.text.data import Windows
from lynx_moe.testbed.text.documents import split_of
from lynx_moe.testbed.text.page import render
from lynx_moe.testbed.text.recipe import TEXT, TextCourse
from lynx_moe.testbed.text.sources import KINDS
from lynx_moe.testbed.training.schedule import PLAN, Schedule, finish, planned
from lynx_moe.testbed.training.train import Run, agreed, build_model, train

TINY = replace(
    TEXT,
    config=TEXT.config | {"hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8, "moe_intermediate_size": 8},
    batch_rows=4,
    row_length=33,
    micro_rows=2,
    num_tokens=6 * 4 * 33,
)
VOCABULARY = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tokens without text: 20 windows and a rest of each kind and split, ids that only one place has."""
    (tmp_path / "tokens").mkdir()
    for number, kind in enumerate(KINDS):
        for split in ("train", "tune"):
            ids = 3 + number * 50 + np.arange(20 * 32 + 40) % 900
            ids.astype(np.uint16).tofile(tmp_path / "tokens" / f"{split}-{kind}.bin")
    return tmp_path


def test_windows_see_every_token_of_a_kind_before_any_twice(folder: Path) -> None:
    windows = Windows(folder, "train", TINY, bos=1)
    epoch = [windows.window(number, 0).tolist() for number in range(20)]
    counts = Counter(token for window in epoch for token in window)
    assert set(counts.values()) == {1}
    assert len(counts) == 20 * 32
    assert [windows.window(number, 0).tolist() for number in range(20, 40)] != epoch


def test_batches_depend_on_the_step_alone_and_each_of_two_workers_sees_both_kinds(folder: Path) -> None:
    batch = Windows(folder, "train", TINY, bos=1).batch(3)
    again = Windows(folder, "train", TINY, bos=1).batch(3)
    assert torch.equal(batch.ids_BL, again.ids_BL)
    assert batch.ids_BL.shape == (4, 33)
    assert batch.ids_BL[:, 0].tolist() == [1] * 4
    assert not batch.learn_BL[:, 0].any()
    assert batch.learn_BL[:, 1:].all()
    windows = Windows(folder, "train", TINY, bos=1)
    wanted = [windows.window(number, kind).tolist() for kind in (0, 1) for number in (6, 7)]
    assert batch.ids_BL[:, 1:].tolist() == wanted
    for worker in range(2):
        share = batch.rows(worker, 2).ids_BL[:, 1:].tolist()
        assert share == [wanted[worker], wanted[2 + worker]]


def test_pieces_of_a_batch_add_up_to_its_gradient(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = replace(TINY, balance_coef=0.0, micro_rows=0)
    model_run = [
        Run(family, tokenizer, folder / str(n)) for n, family in enumerate((plain, replace(plain, micro_rows=1)))
    ]
    batch = Windows(folder, "train", TINY, bos=1).batch(0)
    gradients = []
    for run in model_run:
        parts = batch.parts(run.family.micro_rows)
        assert sum(run.backward(part, 128, len(parts)).nats.item() for part in parts) > 0
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)
    assert [len(part.ids_BL) for part in batch.parts(3)] == [3, 1]
    assert len(batch.parts(0)) == 1


def test_an_early_end_is_settled_once_and_kept(tmp_path: Path) -> None:
    assert planned(TINY, tmp_path, 5) == Schedule(0.8 * 6, 6) == Schedule.of(TINY)
    with pytest.raises(ValueError, match=r"no run in .* to end: it has no checkpoint"):
        finish(tmp_path, 10)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="0 steps cannot end a run: give 1 or more"):
        finish(tmp_path, 0)
    finish(tmp_path, 10)
    settled = planned(TINY, tmp_path, 50)
    assert settled == planned(TINY, tmp_path, 59) == Schedule(50, 60)
    assert [settled.rate(step) for step in (49, 50, 55, 60)] == pytest.approx([1, 1, 0.51, 0.02])


def test_the_first_worker_alone_reads_the_plan(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[torch.Tensor] = []

    def broadcast(numbers: torch.Tensor, source: int) -> None:
        assert source == 0
        if sent:
            numbers.copy_(sent[0])
        sent.append(numbers.clone())

    monkeypatch.setattr("lynx_moe.testbed.training.train.distributed.broadcast", broadcast)
    run = Run(TINY, tokenizer, tmp_path)
    run.save()
    finish(tmp_path, 10)
    first = agreed(run, 0, 2)
    assert first == Schedule(0, 10)
    finish(tmp_path, 20)
    assert agreed(run, 1, 2) == first
    assert json.loads((tmp_path / PLAN).read_text()) == {"decay_steps": 20}


def test_a_run_is_ended_early_and_goes_on_where_it_stopped(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    work, course = folder / "run", TextCourse(folder, TINY, log_every=1, evaluate_every=2)
    train(TINY, tokenizer, work, course=course, stop_after=2)
    finish(work, 2)
    train(TINY, tokenizer, work, course=course, stop_after=1)
    assert json.loads((work / PLAN).read_text()) == {"decay_steps": 2, "decay_from": 2, "num_steps": 4}
    ended = train(TINY, tokenizer, work, course=course)
    records = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [set(KINDS) <= record.keys() for record in records] == [False, True, True, True]
    again = train(TINY, tokenizer, work, course=course)
    assert all(torch.equal(a, b) for a, b in zip(ended.parameters(), again.parameters(), strict=True))


def test_the_measured_loss_is_that_of_the_windows(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model(TINY, tokenizer).eval()
    told = TextCourse(folder, TINY).measure(model, tokenizer)
    windows = Windows(folder, "tune", TINY, tokenizer.bos_token_id)
    ids = torch.tensor([[tokenizer.bos_token_id, *windows.window(n, 1).tolist()] for n in range(16)])
    assert told["code"] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=2e-4)


@pytest.fixture
def finished(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A run of two steps with a corpus of documents, as `text card` finds it."""
    import gzip

    documents = [
        {"source": f"{kind}-source", "kind": kind, "text": f"{kind} number {n} " * 30}
        for n in range(150)
        for kind in KINDS
    ]
    with gzip.open(folder / "documents.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(document) + "\n" for document in documents)
    facts = {"kind": "prose", "licence": "BSD", "via": "debian", "documents": 150, "bytes": 1_500_000}
    (folder / "sources.json").write_text(json.dumps([{"name": "prose-source", **facts}]))
    tokenizer.save_pretrained(folder / "tokenizer")
    train(TINY, tokenizer, folder / "run", course=TextCourse(folder, TINY), stop_after=2)
    return folder


def test_the_card_tells_what_was_measured(finished: Path) -> None:
    out = finished / "models" / "text"
    write_model(finished, out, TINY)
    scores = json.loads((out / "scores.json").read_text())
    page = (out / "README.md").read_text()
    assert page == render("text", scores)
    assert "| `prose-source` | Debian 12 | BSD | prose | 150 | 1.5 |" in page
    assert "exact" not in scores  # it solves no exercises, and the card must not pretend
    for row in scores["text"].values():
        assert row["interval"][0] <= row["nats"] <= row["interval"][1]
        assert row["perplexity"] == pytest.approx(np.exp(row["nats"]))
    assert sum(scores["router"]["weights"]) == pytest.approx(1)
    assert len(scores["layers"]) == 2
    assert scores["training"]["tokens"] == 2 * 4 * 33
    shipped = held_out.read(out)
    assert {split_of(document["text"]) for document in shipped} == {"calibrate", "tune", "test"}
    assert {document["kind"] for document in shipped} == set(KINDS)
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert scores["parameters"] == sum(p.numel() for p in model.parameters())
    experts = 2 * 64 * 3 * 16 * 8
    assert scores["active"] == scores["parameters"] - experts * 7 // 8 - model.get_input_embeddings().weight.numel()


def test_the_command_saves_a_model_and_draws_the_table_anew(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lynx_moe.testbed.text.card.Run", lambda family, *rest: Run(TINY, *rest))
    finish(finished / "run", 4)
    result = CliRunner().invoke(app, ["text", "card", "--out", str(finished), "--models", str(tmp_path / "m")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "m" / "text" / "README.md").read_text()
    assert "(2 steps" in page
    assert "The learning rate never fell." in page
    assert "[text](text/README.md)" in (tmp_path / "m" / "README.md").read_text()


def test_the_command_refuses_what_is_not_there(tmp_path: Path) -> None:
    for command in (["card"], ["finish", "--steps", "10"]):
        result = CliRunner().invoke(app, ["text", *command, "--out", str(tmp_path)])
        assert result.exit_code == 2
        assert "checkpoint.pt" in result.output
