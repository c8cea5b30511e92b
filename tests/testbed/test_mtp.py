"""The MTP layer: a draft in training sees what one in serving sees, and what is saved has the names that vLLM reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from places import MODELS
from safetensors.torch import load_file
from transformers import DynamicCache, PreTrainedTokenizerFast
from typer.testing import CliRunner

from lynx_moe.testbed.cli import app
from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.mtp import build
from lynx_moe.testbed.mtp import train as recipe
from lynx_moe.testbed.mtp.layer import FILE, Predictor
from lynx_moe.testbed.mtp.loss import depths, mask, states
from lynx_moe.testbed.training.data import TEXTS, Batch, Packer
from lynx_moe.testbed.training.train import build_model, save_model

Texts = list[list[list[int]]]
of_deepseek = pytest.mark.parametrize("tiny_family", [build.NAME], indirect=True)
STEPS = 6


@pytest.fixture
def target(tiny_family: Family, tokenizer: PreTrainedTokenizerFast) -> Any:
    return build_model(tiny_family, tokenizer).eval()


@pytest.fixture
def layer(target: Any) -> Predictor:
    """Of weights that no symmetry hides."""
    torch.manual_seed(4)
    made = Predictor(target)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made.eval()


@pytest.fixture
def batches(tiny_family: Family, tokenizer: PreTrainedTokenizerFast, texts: Texts) -> Packer:
    return Packer(tokenizer, texts, tiny_family)


def test_a_draft_attends_to_the_model_s_prefix_and_to_itself() -> None:
    seen = mask(torch.tensor([[0, 1, 2, 0, 1]]), 2)[0, 0].int().tolist()
    assert seen == [
        [0, 0, 0, 0, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
    ]


@of_deepseek
@torch.inference_mode()
def test_all_drafts_at_once_are_each_draft_by_itself(target: Any, layer: Predictor, batches: Packer) -> None:
    """A draft after position p: the layer over the prefix, then token by token, from its own states and keys."""
    batch = batches.batch(0).rows(0, 3)
    hidden_BLH = target.model(input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False)[0]
    found = list(states(target, layer, batch, hidden_BLH, 3))
    starts = (batch.positions_BL[0] == 0).nonzero().flatten().tolist()
    start = starts[1]
    ids, hidden = batch.ids_BL[:, start:], hidden_BLH[:, start:]
    embedded = target.get_input_embeddings()(ids)
    for last in (3, 6):
        cache, state = DynamicCache(), hidden[:, : last + 1]
        for depth in range(3):
            first = 0 if depth == 0 else last + depth
            places = torch.arange(first, last + depth + 1)[None]
            given: dict[str, Any] = {"position_embeddings": target.model.rotary_emb(state, position_ids=places)}
            given["attention_mask"] = torch.ones(1, 1, last + 1, last + 1).tril().bool() if depth == 0 else None
            state = layer(embedded[:, places[0] + 1], state, places, past_key_values=cache, **given)[:, -1:]
            expected = found[depth][:, start + last + depth]
            torch.testing.assert_close(state[:, 0], expected, atol=1e-5, rtol=1e-4)


@of_deepseek
@torch.inference_mode()
def test_the_token_after_the_first_is_not_seen(target: Any, layer: Predictor) -> None:
    """As in vLLM, which masks the embedding at position 0."""
    ids = torch.randint(3, 900, (2, 5))
    ids[1] = ids[0]
    ids[1, 1:] += 1
    places, learn = torch.arange(5).expand(2, 5), torch.ones(2, 5, dtype=torch.bool)
    hidden = torch.randn(1, 5, target.config.hidden_size).expand(2, 5, -1)
    (state,) = states(target, layer, Batch(ids, places, learn), hidden, 1)
    assert torch.equal(state[0, 0], state[1, 0])
    assert not torch.allclose(state[0, 1], state[1, 1])


@of_deepseek
def test_what_is_saved_has_the_names_of_the_model_s_own_layers(target: Any, layer: Predictor, tmp_path: Path) -> None:
    layer.save(target, tmp_path)
    save_model(target, tmp_path)
    saved, model = load_file(tmp_path / FILE), load_file(tmp_path / "model.safetensors")
    last, number = "model.layers.1.", "model.layers.2."
    own = {name.removeprefix(last): value for name, value in model.items() if name.startswith(last)}
    mine = {name.removeprefix(number): value for name, value in saved.items()}
    assert len(mine) == len(saved)
    more = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight"}
    assert set(mine) == {*own, *more, "embed_tokens.weight"}
    assert all(mine[name].shape == value.shape and mine[name].dtype == value.dtype for name, value in own.items())
    assert torch.equal(mine["embed_tokens.weight"], model["model.embed_tokens.weight"])
    assert torch.equal(mine["shared_head.head.weight"], model["lm_head.weight"])
    assert torch.equal(mine["mlp.experts.3.up_proj.weight"], layer.block.mlp.experts.gate_up_proj[3, 8:].bfloat16())


@of_deepseek
def test_a_run_that_was_stopped_ends_with_the_same_weights_and_the_model_is_left_alone(
    target: Any, tiny_family: Family, batches: Packer, tmp_path: Path
) -> None:
    row = replace(tiny_family, learning_rate=4e-3)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    tokens = STEPS * row.batch_rows * row.row_length
    whole = recipe.train(target, row, batches, tmp_path / "whole", tokens)
    run = recipe.Run(target, replace(row, num_tokens=tokens), tmp_path / "parts")
    for step in range(2):
        run.advance(batches.batch(step))
    run.save()
    parts = recipe.train(target, row, batches, tmp_path / "parts", tokens)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    first, last = (
        sum(depth.nats.item() for depth in depths(target, each, batches.batch(0), 3))
        for each in (Predictor(target), whole)
    )
    assert last < first
    assert (
        whole.block.mlp.gate.e_score_correction_bias != Predictor(target).block.mlp.gate.e_score_correction_bias
    ).any()


@of_deepseek
def test_the_command_puts_the_layer_beside_the_model_and_into_its_card(
    target: Any, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, work = tmp_path / build.NAME, tmp_path / f".train-{build.NAME}-mtp"
    save_model(target, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "scores.json"):
        (folder / name).write_bytes((MODELS / build.NAME / name).read_bytes())
    work.mkdir()
    (work / TEXTS).write_text(json.dumps(texts), encoding="utf-8")
    monkeypatch.setattr(recipe, "ITEMS_PER_TASK", 1)
    monkeypatch.setattr(recipe, "NUM_DEPTHS", 2)
    weights = (folder / "model.safetensors").read_bytes()
    result = CliRunner().invoke(app, ["mtp", "--out", str(tmp_path), "--tokens", str(2 * 8 * 192)])
    assert result.exception is None, result.output
    assert "the model's first choice by depth" in result.output
    assert (folder / "model.safetensors").read_bytes() == weights
    assert json.loads((folder / "mtp.jsonl").read_text())["step"] == 2
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 1
    found = json.loads((folder / "scores.json").read_text())["mtp"]
    assert (found["training"]["steps"], len(found["agree"])) == (2, 2)
    assert found["tokens"][0] == found["tokens"][1] > 100
    card = (folder / "README.md").read_text()
    assert "## A layer that drafts" in card
    assert found["sha256"] in card
    missing = CliRunner().invoke(app, ["mtp", "--out", str(work)])
    assert missing.exit_code == 2
    assert "no trained deepseek-v3" in missing.output
