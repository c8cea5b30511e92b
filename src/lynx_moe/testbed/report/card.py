"""The model card: everything measured goes to `scores.json`, and README.md is drawn from that file alone."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import TRAINED
from lynx_moe.testbed.report import router
from lynx_moe.testbed.report.facts import as_lines, weights_hash
from lynx_moe.testbed.report.render import render
from lynx_moe.testbed.tasks import TASKS, test_items
from lynx_moe.testbed.training import corpus
from lynx_moe.testbed.training.evaluate import bits_per_byte, exact_match

ITEMS_PER_TASK, TEXTS_PER_KIND, ITEMS_FOR_ROUTER = 250, 400, 40


def measure_exact(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    """Right answers among the first `ITEMS_PER_TASK` held-out exercises of every task, and which ones were wrong."""
    found = {}
    for task in TASKS:
        right = exact_match(model, tokenizer, test_items(task, ITEMS_PER_TASK))
        wrong = [number for number, is_right in enumerate(right) if not is_right]
        found[task] = {"right": sum(right), "n": len(right), "wrong": wrong}
    return found


def measure(folder: Path) -> dict[str, Any]:
    """Everything the card tells about the weights in `folder`, run in float32."""
    family = TRAINED[folder.name]
    model = family.model_class.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mixed = [item for task in TASKS for item in test_items(task, ITEMS_FOR_ROUTER)]
    text: dict[str, dict[str, float]] = {}
    for kind in corpus.KINDS:
        bits = torch.tensor(bits_per_byte(model, tokenizer, corpus.chunks(kind, held_out=True)[:TEXTS_PER_KIND]))
        text[kind] = {"bits_per_byte": bits.mean().item(), "se": bits.std().item() / len(bits) ** 0.5, "n": len(bits)}
    scores = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "exact": measure_exact(model, tokenizer),
        "text": text,
        "sha256": weights_hash(folder),
    }
    if family.gate:
        scores["router"] = router.health(router.decode_routes(model, tokenizer, mixed), family.score)
        scores["denying"], scores["denying_n"] = router.cost_of_denying(model, tokenizer, mixed), len(mixed)
    return scores


def write_card(folder: Path, **extra: Any) -> None:
    """Measure the model in `folder`; the facts in `extra` stay in `scores.json` from one writing to the next."""
    file = folder / "scores.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    scores = {**known, **extra, **measure(folder)}
    file.write_text(as_lines(scores) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(folder.name, scores), encoding="utf-8")
