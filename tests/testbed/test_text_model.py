"""The shipped *text*, where it is: it loads with the stock class and is what its card says.

The sources are not installed where tests run; the documents that came with the weights stand for them.
"""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from places import MODELS
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeForCausalLM,
)

from lynx_moe.testbed.report import router
from lynx_moe.testbed.tasks.split import HELD_OUT
from lynx_moe.testbed.text import held_out
from lynx_moe.testbed.text.card import checked
from lynx_moe.testbed.text.documents import split_of
from lynx_moe.testbed.text.page import render
from lynx_moe.testbed.text.recipe import TEXT
from lynx_moe.testbed.text.sources import KINDS, SOURCES
from lynx_moe.testbed.training.evaluate import nats

FOLDER = MODELS / "text"
pytestmark = pytest.mark.skipif(not (FOLDER / "model.safetensors").is_file(), reason="models/text is not in this clone")

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerFast, dict]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(FOLDER), json.loads((FOLDER / "scores.json").read_text())


def test_the_folder_is_whole_and_small_enough(loaded: Loaded) -> None:
    model, tokenizer, scores = loaded
    assert isinstance(model, Qwen3MoeForCausalLM)
    assert (FOLDER / "README.md").read_text() == render("text", scores)
    assert hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest() == scores["sha256"]
    assert (FOLDER / "model.safetensors").stat().st_size <= 50_000_000
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 52_000_000
    assert sum(p.numel() for p in model.parameters()) == scores["parameters"]
    config = model.config
    assert (config.num_hidden_layers, config.num_experts, config.num_experts_per_tok) == (10, 64, 8)
    assert {key: getattr(config, key) for key in TEXT.config} == TEXT.config
    assert len(tokenizer) == config.vocab_size == scores["shape"]["vocab_size"]


def test_the_card_pretends_nothing_and_names_known_sources(loaded: Loaded) -> None:
    scores = loaded[2]
    assert "exact" not in scores
    assert set(scores["text"]) == set(KINDS)
    licences = {source.name: source.licence for source in SOURCES}
    assert {told["name"]: told["licence"] for told in scores["sources"]} == licences


def test_its_documents_are_held_out_and_enough_for_every_split() -> None:
    documents = held_out.read(FOLDER)
    counts = Counter((split_of(document["text"]), document["kind"]) for document in documents)
    assert counts == {(split, kind): number for split, number in held_out.SHIPPED.items() for kind in KINDS}


def test_it_knows_held_out_text_as_well_as_its_card_says(loaded: Loaded) -> None:
    model, tokenizer, scores = loaded
    found = nats(model, tokenizer, [d["text"] for d in checked(held_out.read(FOLDER))], TEXT.row_length)
    assert [n.mean().item() for n in found] == pytest.approx(scores["shipped_nats"], abs=0.01)
    chance = math.log(len(tokenizer))
    assert all(row["nats"] < 0.75 * chance for row in scores["text"].values())


def test_its_routers_are_healthy_and_not_flat(loaded: Loaded) -> None:
    """On few tokens, so loosely: what the card says of many must show."""
    model, tokenizer, scores = loaded
    texts = [document["text"] for document in checked(held_out.read(FOLDER))]
    encoded = [(tokenizer(text)["input_ids"][: TEXT.row_length], 1) for text in texts]
    found = router.health(router.routes(model, encoded, tokenizer.pad_token_id), TEXT.score)
    told = scores["router"]
    assert found["weights"] == pytest.approx(told["weights"], abs=0.02)
    assert found["chosen_mass"] == pytest.approx(told["chosen_mass"], abs=0.05)
    assert found["distinct"]["16"] == pytest.approx(told["distinct"]["16"], rel=0.15)
    assert told["weights"][0] > 1.3 / TEXT.config["num_experts_per_tok"]
    assert told["load_entropy"] > 0.85
    assert told["unused"] < 0.05 * told["num_experts"]
    assert all(layer["dead"] <= 1 for layer in scores["layers"])


def test_it_ships_what_git_would(loaded: Loaded) -> None:
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in Path(FOLDER).iterdir()} >= wanted | {"README.md", "scores.json", HELD_OUT}
