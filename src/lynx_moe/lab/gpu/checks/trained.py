"""Step "trained": a larger testbed model (201 M parameters in 64 experts, top-8), trained by the testbed's recipe for
as many steps as fit into minutes, and its fidelity under policies at batch 8 to 128.

Its weights are too large to ship: what stays is the record.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.testbed.locate import model_roots
from lynx_moe.testbed.model.families import FAMILIES, Family
from lynx_moe.testbed.tasks import TASKS, test_items
from lynx_moe.testbed.training.data import TEXTS, Batch, Packer, encode_texts
from lynx_moe.testbed.training.evaluate import exact_match
from lynx_moe.testbed.training.train import Run, save_model

LARGE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4}
LARGE |= {"head_dim": 64, "intermediate_size": 1024, "moe_intermediate_size": 256}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
TRAIN_SECONDS, TRIAL_STEPS, WORKERS = 270, 30, 12
POLICIES = ["lynx", "oea:k0=3", "xshare:alpha=0.5", "priced:price=0.02", "random:num_keep=32"]


def family_for(dry: bool) -> Family:
    """The testbed's qwen3-moe in another size; more rows per step than a CPU takes."""
    family = FAMILIES["qwen3-moe"]
    if dry:
        return replace(family, config=family.config | SMALL, batch_rows=2, row_length=64)
    return replace(family, config=family.config | LARGE, batch_rows=96)


def measure(dry: bool) -> dict[str, Any]:
    """Trains, scores every task, sweeps batch sizes; the record of all three."""
    device, family = "cpu" if dry else "cuda", family_for(dry)
    torch.set_float32_matmul_precision("high")
    folders = [root / "tokenizer" for root in model_roots() if (root / "tokenizer").is_dir()]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[0])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if dry:  # the corpus takes half a minute to read
            texts = [[tokenizer(f"some text {n} " * 40)["input_ids"] for n in range(3)]]
            (work / TEXTS).write_text(json.dumps(texts), encoding="utf-8")
        encode_texts(tokenizer, work / TEXTS)
        trial = 2 if dry else TRIAL_STEPS
        _, seconds, _ = _train(_with_steps(family, trial), tokenizer, work, device)
        steps = 3 if dry else int(TRAIN_SECONDS * trial / seconds)
        family = _with_steps(family, steps)
        model, seconds, loss = _train(family, tokenizer, work, device)
        with torch.device(device):
            items = {task: test_items(task, 4 if dry else 100, seed=1) for task in TASKS}
            exact = {task: sum(exact_match(model, tokenizer, some)) / len(some) for task, some in items.items()}
        save_model(model, work / "model")
        tokenizer.save_pretrained(work / "model")
        settings = fidelity.Settings(
            model=str(work / "model"),
            batch_sizes=(2,) if dry else (8, 16, 32, 64, 128),
            mixes=("mixed",),
            num_sequences=4 if dry else 256,
        )
        policies = POLICIES[:1] if dry else POLICIES
        swept = fidelity.measure(settings, policies, work / "fidelity.jsonl", advance=print)["results"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "tokens": steps * family.batch_rows * family.row_length,
        "seconds": seconds,
        "loss": loss,
        "exact": exact,
        "fidelity": [{name: value for name, value in line.items() if "by_" not in name} for line in swept],
    }


def _with_steps(family: Family, steps: int) -> Family:
    return replace(family, num_tokens=steps * family.batch_rows * family.row_length)


def _train(family: Family, tokenizer: PreTrainedTokenizerFast, work: Path, device: str) -> tuple[Any, float, float]:
    """(model, seconds, last loss) of a whole run of the recipe."""
    packer = Packer(tokenizer, encode_texts(tokenizer, work / TEXTS), family)
    run = Run(family, tokenizer, work)
    run.model.to(device)
    ahead, start, loss = Ahead(packer, family.num_steps, device), time.monotonic(), 0.0
    while run.step < family.num_steps:
        loss, _ = run.advance(ahead, 0, 1)
    return run.model.eval(), time.monotonic() - start, loss


class Ahead:
    """A packer's batches on the device, in order; other processes pack them, since packing is slower than a GPU."""

    def __init__(self, packer: Packer, num_steps: int, device: str) -> None:
        workers = 0 if device == "cpu" else WORKERS
        collate = partial(_pack, packer)
        loader = DataLoader(range(num_steps), batch_size=1, num_workers=workers, collate_fn=collate)  # type: ignore[arg-type,var-annotated]
        self.batches: Iterator[Batch] = iter(loader)
        self.device = device

    def batch(self, step: int) -> Batch:
        """The next one."""
        found = next(self.batches)
        return Batch(*(part.to(self.device) for part in (found.ids_BL, found.positions_BL, found.learn_BL)))


def _pack(packer: Packer, steps: list[int]) -> Batch:
    return packer.batch(steps[0])
