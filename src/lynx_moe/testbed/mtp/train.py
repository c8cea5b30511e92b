"""The recipe: the families' own batches and optimizers, over the layer alone; resumes where it stopped."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.mtp.layer import Predictor
from lynx_moe.testbed.mtp.loss import Depth, depths, total
from lynx_moe.testbed.tasks import TASKS, test_items
from lynx_moe.testbed.training.course import Batches
from lynx_moe.testbed.training.data import Batch, encode_item
from lynx_moe.testbed.training.loss import move_bias, recorded
from lynx_moe.testbed.training.optimizers import grouped
from lynx_moe.testbed.training.schedule import Schedule
from lynx_moe.testbed.training.train import MAX_GRAD_NORM, SAVE_EVERY_S

NUM_DEPTHS, NUM_TOKENS = 3, 614_400
ITEMS_PER_TASK, ROWS = 50, 16
LOG, LOG_EVERY = "log.jsonl", 50


class Run:
    """One training run of a frozen model's layer; `work` holds its checkpoint and its log."""

    def __init__(self, target: PreTrainedModel, family: Family, work: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        target.requires_grad_(False)
        self.target, self.family, self.file, self.step = target, family, work / "checkpoint.pt", 0
        self.layer = Predictor(target)
        self.gate: Any = self.layer.block.mlp.gate
        self.optimizers = grouped(self.layer, [self.gate.weight], [], family.learning_rate)
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            self.layer.load_state_dict(state["layer"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def save(self) -> None:
        """Replace the checkpoint in one move: a run killed at any moment leaves a whole one."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        partial = self.file.with_suffix(".tmp")
        torch.save({"step": self.step, "layer": self.layer.state_dict(), "optimizers": optimizers}, partial)
        partial.replace(self.file)

    def advance(self, batch: Batch) -> list[Depth]:
        """One optimizer step."""
        with recorded([self.gate]) as calls:
            found = depths(self.target, self.layer, batch, NUM_DEPTHS)
        total(found).backward()
        nn.utils.clip_grad_norm_(self.layer.parameters(), MAX_GRAD_NORM)
        rate = Schedule.of(self.family).rate(self.step)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        move_bias(self.gate, torch.stack([call.load_E for call in calls]).sum(0), self.family.bias_rate)
        self.step += 1
        return found


def train(
    target: PreTrainedModel, family: Family, batches: Batches, work: Path, num_tokens: int = NUM_TOKENS
) -> Predictor:
    """The layer of a frozen model of this family. The log has a line at times: step, loss, the share of the model's
    first choices that the layer has at each depth, and processor seconds since the run was started or continued."""
    run = Run(target, replace(family, num_tokens=num_tokens), work)
    began, saved = time.process_time(), time.monotonic()
    with (work / LOG).open("a", encoding="utf-8") as log:
        while run.step < run.family.num_steps:
            found = run.advance(batches.batch(run.step))
            is_last = run.step == run.family.num_steps
            if run.step % LOG_EVERY == 0 or is_last:
                seconds = round(time.process_time() - began, 1)
                told = {"step": run.step, "loss": total(found).item(), "agree": shares(found), "seconds": seconds}
                log.write(json.dumps(told) + "\n")
                log.flush()
            if time.monotonic() - saved > SAVE_EVERY_S or is_last:
                run.save()
                saved = time.monotonic()
    return run.layer.eval()


def shares(found: list[Depth]) -> list[float]:
    """Of the tokens at each depth, those in which the layer's first choice is the model's."""
    return [round((depth.agree / depth.tokens).item(), 4) for depth in found]


@torch.inference_mode()
def agreement(target: PreTrainedModel, layer: Predictor, tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Any]]:
    """On answers of held-out exercises, the tokens before being the right answer's: `shares`, and how many tokens each
    depth had."""
    documents = [encode_item(item, tokenizer) for task in TASKS for item in test_items(task, ITEMS_PER_TASK)]
    parts = [_rows(documents[start : start + ROWS]) for start in range(0, len(documents), ROWS)]
    by_depth = zip(*(depths(target, layer, part, NUM_DEPTHS) for part in parts), strict=True)
    found = [Depth(*(_sum(column) for column in zip(*of, strict=True))) for of in by_depth]
    return {"agree": shares(found), "tokens": [int(depth.tokens) for depth in found]}


def _sum(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.stack(parts).sum(0)


def _rows(documents: list[tuple[list[int], int]]) -> Batch:
    """One document a row; what fills a row is a document of its own, and is not learnt."""
    width = max(len(ids) for ids, _ in documents)
    ids, positions, learn = [], [], []
    for document, given in documents:
        rest = width - len(document)
        ids.append(document + [0] * rest)
        positions.append([*range(len(document)), *range(rest)])
        learn.append([False] * given + [True] * (len(document) - given) + [False] * rest)
    return Batch(torch.tensor(ids), torch.tensor(positions), torch.tensor(learn))
