"""The card of *text*: everything measured goes to `scores.json`, and README.md is drawn from that file alone."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.report import router
from lynx_moe.testbed.report.facts import as_lines, training_record, weights_hash
from lynx_moe.testbed.text import held_out
from lynx_moe.testbed.text.page import render
from lynx_moe.testbed.text.recipe import TEXT
from lynx_moe.testbed.text.sources import KINDS
from lynx_moe.testbed.training.evaluate import nats
from lynx_moe.testbed.training.loss import Routed
from lynx_moe.testbed.training.schedule import planned
from lynx_moe.testbed.training.train import Run, save_model

SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "num_experts",
    "moe_intermediate_size",
    "num_experts_per_tok",
    "vocab_size",
)
DOCUMENTS, ROUTED_DOCUMENTS, CHECKED, ROWS, DRAWS = 200, 60, 8, 8, 1000


def loss_of(found: list[Tensor], texts: list[str], tokenizer: PreTrainedTokenizerFast, limit: int) -> dict[str, Any]:
    """Loss over all tokens that were read, with a 95 % interval from documents drawn anew, and bits per byte.

    `nats` is mean nats a token; `perplexity` its exponential; `documents` and `tokens` say how many were read.
    """
    sums, counts = torch.stack([n.double().sum() for n in found]), torch.tensor([len(n) for n in found])
    drawn = torch.randint(len(found), (DRAWS, len(found)), generator=torch.Generator().manual_seed(0))
    means = (sums[drawn].sum(1) / counts[drawn].sum(1)).sort().values
    read = [tokenizer.decode(tokenizer(text)["input_ids"][1:limit]) for text in texts]
    mean = (sums.sum() / counts.sum()).item()
    return {
        "nats": mean,
        "interval": [means[int(DRAWS * 0.025)].item(), means[int(DRAWS * 0.975)].item()],
        "perplexity": math.exp(mean),
        "bits_per_byte": sums.sum().item() / math.log(2) / sum(len(text.encode()) for text in read),
        "documents": len(found),
        "tokens": int(counts.sum()),
    }


def by_layer(layers: list[Routed]) -> list[dict[str, float]]:
    """Each layer's load entropy over log E, its router's entropy over log E, experts hardly used, and first share."""
    rows = []
    for layer in layers:
        num_experts = layer.logits_TE.shape[-1]
        load_E = layer.load_E / layer.ids_TK.numel()
        probs_TE = layer.logits_TE.float().softmax(-1)
        weights_TK = layer.weights_TK.float()
        rows.append(
            {
                "load_entropy": (torch.special.entr(load_E).sum() / math.log(num_experts)).item(),
                "router_entropy": (torch.special.entr(probs_TE).sum(-1).mean() / math.log(num_experts)).item(),
                "unused": (load_E < 0.1 / num_experts).sum().item(),
                "dead": (load_E == 0).sum().item(),
                "first_share": (weights_TK.amax(-1) / weights_TK.sum(-1)).mean().item(),
            }
        )
    return rows


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, found: dict[str, list[held_out.Document]]
) -> dict[str, Any]:
    """Loss and the routers' habits on held-out documents, `found` by kind; the beginning of each is read."""
    limit = TEXT.row_length
    text, encoded = {}, []
    for kind, documents in found.items():
        texts = [document["text"] for document in documents]
        text[kind] = loss_of(nats(model, tokenizer, texts, limit, ROWS), texts, tokenizer, limit)
        encoded += [(tokenizer(t)["input_ids"][:limit], 1) for t in texts[:ROUTED_DOCUMENTS]]
    layers = router.routes(model, encoded, tokenizer.pad_token_id, ROWS)
    return {"text": text, "router": router.health(layers, TEXT.score), "layers": by_layer(layers)}


def write_model(out: Path, folder: Path, family: Family = TEXT, num_workers: int = 2) -> None:
    """Save the run in `out` as the model in `folder`: bfloat16 weights, tokenizer, log, documents to check it, card."""
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    kept = held_out.held_out_documents(out)
    found = {kind: held_out.first(kept, "test", kind, DOCUMENTS) for kind in KINDS}
    run = Run(family, tokenizer, out / "run")
    before = measure(run.model.eval(), tokenizer, found)["text"]
    save_model(run.model, folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(out / "run" / "log.jsonl", folder / "training.jsonl")
    held_out.write(held_out.to_ship(kept), folder)
    training = training_record(folder / "training.jsonl", family) | {"steps": run.step}
    training["tokens"] = run.step * family.batch_rows * family.row_length
    fell = run.step - planned(family, out / "run", run.step).decay_from
    training |= {"decay_steps": max(0, round(fell)), "workers": num_workers}
    facts = {
        "text_float32": before,
        "training": training,
        "sources": json.loads((out / "sources.json").read_text(encoding="utf-8")),
    }
    write_card(folder, found, **facts)


def write_card(folder: Path, found: dict[str, list[held_out.Document]], **extra: Any) -> None:
    """Measure the model in `folder`; the facts in `extra` stay in `scores.json` from one writing to the next."""
    model = TEXT.model_class.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = folder / "scores.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    shipped = [d["text"] for d in checked(held_out.read(folder))]
    scores = {
        **known,
        **extra,
        "parameters": sum(p.numel() for p in model.parameters()),
        "active": active_parameters(model),
        "shape": {fact: getattr(model.config, fact) for fact in SHAPE},
        **measure(model, tokenizer, found),
        "shipped_nats": [round(n.mean().item(), 4) for n in nats(model, tokenizer, shipped, TEXT.row_length, ROWS)],
        "sha256": weights_hash(folder),
    }
    file.write_text(as_lines(scores) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(folder.name, scores), encoding="utf-8")


def checked(shipped: list[held_out.Document]) -> list[held_out.Document]:
    """Those documents that came with a model of which its card tells the loss of each by itself."""
    return [d for kind in KINDS for d in held_out.first(shipped, "test", kind, CHECKED)]


def active_parameters(model: PreTrainedModel) -> int:
    """Parameters that one token passes through: all but the experts that it does not choose and the embedding table."""
    share = 1 - model.config.num_experts_per_tok / model.config.num_experts
    idle = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) * share
    whole = sum(p.numel() for p in model.parameters())
    return int(whole - idle - model.get_input_embeddings().weight.numel())
