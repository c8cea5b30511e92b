"""The shipped models: they load from their folder alone and do what their cards say."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from places import MODELS
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lynx_moe.testbed import path, tasks
from lynx_moe.testbed.cli import app
from lynx_moe.testbed.model.families import BALANCED, DRAFTS, FAMILIES, TRAINED, UNBALANCED
from lynx_moe.testbed.mtp.layer import FILE as MTP
from lynx_moe.testbed.report import router
from lynx_moe.testbed.report.render import render
from lynx_moe.testbed.report.summary import summary
from lynx_moe.testbed.training.evaluate import exact_match

SHIPPED = list(BALANCED)
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast, dict]


@pytest.fixture(scope="module", params=SHIPPED)
def loaded(request: pytest.FixtureRequest) -> Loaded:
    folder = path(request.param)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder), json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("name", [*SHIPPED, *DRAFTS])
def test_folder_is_whole_small_and_matches_its_card(name: str) -> None:
    folder = path(name)
    scores = json.loads((folder / "scores.json").read_text())
    assert (folder / "README.md").read_text() == render(name, scores)
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == scores["sha256"]
    assert sum(file.stat().st_size for file in folder.iterdir() if file.name != MTP) <= 9_000_000
    shared = folder.parent / "tokenizer" / "tokenizer.json"
    assert (folder / "tokenizer.json").read_bytes() == shared.read_bytes()


def test_all_families_fit_into_forty_megabytes() -> None:
    """*text* has a bound of its own, and an MTP layer comes on top."""
    files = [file for file in MODELS.rglob("*") if file.is_file() and MODELS / "text" not in file.parents]
    assert sum(file.stat().st_size for file in files if file.name != MTP) <= 40_000_000
    assert sum(file.stat().st_size for file in files if file.name == MTP) <= 4_000_000


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith(UNBALANCED)])
def test_twins_ship_a_card_of_the_same_recipe_and_no_weights(name: str) -> None:
    folder = MODELS
    scores, balanced = (
        json.loads((folder / twin / "scores.json").read_text()) for twin in (name, name.removesuffix(UNBALANCED))
    )
    assert (folder / name / "README.md").read_text() == render(name, scores)
    assert not list((folder / name).glob("*.safetensors"))
    assert all(scores["training"][key] == balanced["training"][key] for key in ("seed", "steps", "tokens"))
    assert scores["router"]["load_entropy"] < balanced["router"]["load_entropy"]


def test_summary_matches_the_models() -> None:
    folder = MODELS
    page = (folder / "README.md").read_text()
    assert page == summary(folder)
    assert all(f"[{name}]({name}/README.md)" in page for name in TRAINED)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_answers_are_those_of_the_card(loaded: Loaded, task: str) -> None:
    """Of the first 40 exercises the wrong ones are the same; other processors round otherwise, so one may differ."""
    model, tokenizer, scores = loaded
    right = exact_match(model, tokenizer, tasks.test_items(task, 40))
    told = scores["exact"][task]
    assert told["right"] + len(told["wrong"]) == told["n"] >= 200
    wrong = {number for number, is_right in enumerate(right) if not is_right}
    assert len(wrong ^ {number for number in told["wrong"] if number < 40}) <= 1


@pytest.mark.parametrize("name", DRAFTS)
def test_a_drafter_is_dense_shares_the_vocabulary_and_knows_the_exercises_less_well(name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(path(name), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path(name))
    target = json.loads((path("qwen3-moe") / "config.json").read_text())
    assert model.config.vocab_size == target["vocab_size"]
    assert not any("expert" in key for key in model.state_dict())
    scores = json.loads((path(name) / "scores.json").read_text())
    told = {task: row["wrong"] for task, row in scores["exact"].items()}
    for task in ("add", "sort", "translate"):
        right = exact_match(model, tokenizer, tasks.test_items(task, 40))
        wrong = {number for number, is_right in enumerate(right) if not is_right}
        assert len(wrong ^ {number for number in told[task] if number < 40}) <= 1
    mean = sum(row["right"] / row["n"] for row in scores["exact"].values()) / len(tasks.TASKS)
    assert 0.6 < mean < 0.95
    assert "router" not in scores


def test_most_tasks_are_solved(loaded: Loaded) -> None:
    solved = [row["right"] >= 0.8 * row["n"] for row in loaded[2]["exact"].values()]
    assert sum(solved) > len(solved) / 2


def test_teacher_forcing_equals_greedy_generation(loaded: Loaded) -> None:
    model, tokenizer, _ = loaded
    items = [item for task in ("brackets", "caesar", "convert", "reverse") for item in tasks.test_items(task, 5)]
    for item, right in zip(items, exact_match(model, tokenizer, items), strict=True):
        ids = tokenizer(item.prompt, return_tensors="pt")["input_ids"]
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert (tokenizer.decode(written[0, ids.shape[1] :]) == item.answer + "<eos>") is right


def test_routing_matters(loaded: Loaded) -> None:
    model, tokenizer, _ = loaded
    items = [item for task in tasks.TASKS for item in tasks.test_items(task, 3)]
    before = exact_match(model, tokenizer, items)
    cost = router.cost_of_denying(model, tokenizer, items)
    assert cost["rank 0 denied"] < cost["as trained"] - 0.1
    assert cost["random half denied"] < cost["as trained"] - 0.1
    assert exact_match(model, tokenizer, items) == before


def test_path_names_what_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.setenv("LYNX_MOE_MODELS", str(tmp_path))
    assert path("mine") == tmp_path / "mine"
    with pytest.raises(ValueError, match=r"no trained model 'yours' in .* \(found: .*mine.*LYNX_MOE_MODELS"):
        path("yours")


def test_command_line_lists_and_finds_models() -> None:
    listed = CliRunner().invoke(app, ["list"]).output
    assert all(f"{name}: " in listed for name in TRAINED)
    assert "draft: dense, 6 M tokens" in listed
    assert "qwen3-moe: 64 experts, top-8" in listed
    assert CliRunner().invoke(app, ["path", "qwen3-moe"]).output.strip() == str(path("qwen3-moe"))
    assert CliRunner().invoke(app, ["path", "nothing"]).exit_code == 2
    assert CliRunner().invoke(app, ["train", "nothing"]).exit_code == 2


def test_training_takes_up_what_has_no_weights_or_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr("lynx_moe.testbed.cli._train_one", lambda name, *rest: trained.append(name))
    monkeypatch.setattr("lynx_moe.testbed.cli.write_summary", lambda out: None)
    whole, card_only, weights_only, *others = TRAINED
    card, weights = "scores.json", "model.safetensors"
    for name, files in ((whole, (card, weights)), (card_only, (card,)), (weights_only, (weights,))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    assert CliRunner().invoke(app, ["train", "--out", str(tmp_path)]).exit_code == 0
    assert trained == [card_only, weights_only, *others]
