"""From a trained model to one with an MTP layer: weights, configuration, card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from lynx_moe.testbed.model import experts
from lynx_moe.testbed.model.families import FAMILIES
from lynx_moe.testbed.mtp.layer import FILE
from lynx_moe.testbed.mtp.train import LOG, NUM_TOKENS, agreement, train
from lynx_moe.testbed.report.facts import as_lines, training_record, weights_hash
from lynx_moe.testbed.report.render import render
from lynx_moe.testbed.training.data import TEXTS, Packer, encode_texts

NAME = "deepseek-v3"


def build(folder: Path, work: Path, num_tokens: int = NUM_TOKENS) -> dict[str, Any]:
    """Trains the layer of the model in `folder`, or goes on with the run in `work`, and returns what its card tells of
    it. The model's own weights stay as they are: the layer's lie beside them."""
    torch.set_num_threads(1)
    family = FAMILIES[NAME]
    target = family.model_class.from_pretrained(
        folder, dtype=torch.float32, experts_implementation=experts.register()
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    work.mkdir(parents=True, exist_ok=True)
    batches = Packer(tokenizer, encode_texts(tokenizer, work / TEXTS), family)
    layer = train(target, family, batches, work, num_tokens)
    layer.save(target, folder)
    shutil.copy(work / LOG, folder / "mtp.jsonl")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps({**config, "num_nextn_predict_layers": 1}, indent=2) + "\n", encoding="utf-8"
    )
    found = {
        **agreement(target, layer, tokenizer),
        "parameters": sum(parameter.numel() for parameter in layer.parameters()),
        "training": training_record(work / LOG, family),
        "sha256": weights_hash(folder, FILE),
    }
    scores = {**json.loads((folder / "scores.json").read_text(encoding="utf-8")), "mtp": found}
    (folder / "scores.json").write_text(as_lines(scores) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(NAME, scores), encoding="utf-8")
    return found
