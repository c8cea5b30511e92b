"""The recipe: Muon and AdamW, a flat rate with a linear end; one process per worker; resumes where it stopped."""

import json
import math
import os
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lynx_moe.testbed.model import experts
from lynx_moe.testbed.model.families import Family
from lynx_moe.testbed.training.course import Batches, Course, Exercises
from lynx_moe.testbed.training.data import Batch
from lynx_moe.testbed.training.loss import Losses, losses, move_bias
from lynx_moe.testbed.training.optimizers import make_optimizers
from lynx_moe.testbed.training.schedule import Schedule, planned

MAX_GRAD_NORM, ROUTER_STD, SHARP_STD = 1.0, 0.02, 0.125
SAVE_EVERY_S = 120.0


def build_model(family: Family, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The family's model with fresh weights, a function of `family.seed`."""
    torch.manual_seed(family.seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = family.build_config(vocab_size=len(tokenizer), **special)
    config._experts_implementation = experts.register()
    model = family.model_class(config)
    for gate in family.gates(model):
        nn.init.normal_(gate.get_parameter("weight"), std=ROUTER_STD)
    for weight in family.sharp_weights(model):
        nn.init.normal_(weight, std=SHARP_STD)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write `model` in bfloat16, its selection biases in float32, which is what they are added in."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    for name, buffer in model.named_buffers():
        buffer.data = buffers[name]
    model.save_pretrained(folder)


class Run:
    """One training run: model, optimizer and the step reached. `work` holds its checkpoint and `log.jsonl`."""

    def __init__(self, family: Family, tokenizer: PreTrainedTokenizerFast, work: Path, device: str = "cpu") -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.family, self.work, self.step = family, work, 0
        self.model = build_model(family, tokenizer).to(device)
        self.optimizers = make_optimizers(self.model, family)
        self.peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        if (work / "checkpoint.pt").is_file():
            state = torch.load(work / "checkpoint.pt", weights_only=True, map_location=device)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]

    def save(self) -> None:
        """Replace the checkpoint in one move: a run killed at any moment leaves a whole one."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "model": self.model.state_dict(), "optimizers": optimizers}
        torch.save(state, self.work / "checkpoint.tmp")
        (self.work / "checkpoint.tmp").replace(self.work / "checkpoint.pt")

    def advance(
        self, batches: Batches, worker: int, num_workers: int, schedule: Schedule | None = None
    ) -> tuple[float, float]:
        """One optimizer step on this worker's share of the rows; returns its mean loss and balancing loss."""
        rate = (schedule or Schedule.of(self.family)).rate(self.step)
        batch = batches.batch(self.step)
        total = int(batch.learn_BL[:, 1:].sum())
        share = batch.rows(worker, num_workers).to(self.model.device)
        parts = share.parts(self.family.micro_rows)
        found = [self.backward(part, total, len(parts) * num_workers) for part in parts]
        loads = [torch.stack(layer).sum(0) for layer in zip(*(part.loads for part in found), strict=True)]
        if num_workers > 1:
            sum_gradients(self.model)
            for load in loads:
                distributed.all_reduce(load)
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad()
        if self.family.bias_rate:
            for gate, load in zip(self.family.gates(self.model), loads, strict=True):
                move_bias(gate, load, self.family.bias_rate)
        self.step += 1
        nats, balance = (
            sum(value.item() for value in values) for values in zip(*(part[:2] for part in found), strict=True)
        )
        return nats / int(share.learn_BL[:, 1:].sum()), balance / len(parts)

    def backward(self, part: Batch, total: int, num_parts: int) -> Losses:
        """Add the gradients of one of the `num_parts` pieces of a batch with `total` learnt tokens."""
        found = losses(self.model, part, self.family)
        torch.autograd.backward(found.nats / total + self.family.balance_coef * found.balance / num_parts)
        return Losses(found.nats.detach(), found.balance.detach(), found.loads)


def sum_gradients(model: nn.Module) -> None:
    """Add the workers' gradients up, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def agreed(run: Run, worker: int, num_workers: int) -> Schedule:
    """The schedule as the first worker reads it, for all: the plan may change between two of them reading it."""
    schedule = planned(run.family, run.work, run.step) if worker == 0 else Schedule(0, 0)
    if num_workers == 1:
        return schedule
    numbers = torch.tensor([schedule.decay_from, schedule.num_steps], dtype=torch.float64)
    distributed.broadcast(numbers, 0)
    return Schedule(numbers[0].item(), int(numbers[1]))


def work_through(
    worker: int,
    num_workers: int,
    family: Family,
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    course: Course,
    stop_after: int | None,
) -> None:
    """What each worker process does: train from the checkpoint in `work` to the end, or for `stop_after` steps more."""
    torch.set_num_threads(1)
    if num_workers > 1:
        meeting = f"file://{(work / 'rendezvous').resolve()}-{os.getppid()}"
        distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=num_workers)
    run = Run(family, tokenizer, work, device="cuda" if torch.cuda.is_available() and num_workers == 1 else "cpu")
    batches = course.batches(family, tokenizer, work)
    stop = math.inf if stop_after is None else run.step + stop_after
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=worker > 0) as progress, (work / "log.jsonl").open("a", encoding="utf-8") as log:
        bar = progress.add_task("training", total=family.num_steps, completed=run.step)
        saved, started = time.monotonic(), time.process_time()
        while run.step < stop:
            schedule = agreed(run, worker, num_workers)
            if run.step >= schedule.num_steps:
                break
            loss, balance = run.advance(batches, worker, num_workers, schedule)
            if worker > 0:
                continue
            is_last = run.step >= min(stop, schedule.num_steps)
            progress.update(bar, completed=run.step, total=schedule.num_steps, description=f"training, loss {loss:.3f}")
            if run.step % course.log_every == 0 or is_last:
                seconds = round(time.process_time() - started, 1)
                record: dict[str, object] = {"step": run.step, "loss": loss, "balance": balance, "seconds": seconds}
                if run.step % course.evaluate_every == 0 or is_last:
                    record |= course.measure(run.model, tokenizer)
                log.write(json.dumps(record) + "\n")
                log.flush()
            if time.monotonic() - saved > SAVE_EVERY_S or is_last:
                run.save()
                saved = time.monotonic()
    if num_workers > 1:
        distributed.destroy_process_group()


def train(
    family: Family,
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    *,
    course: Course | None = None,
    num_workers: int = 1,
    stop_after: int | None = None,
) -> PreTrainedModel:
    """Train to the end of the budget, or for `stop_after` steps more; returns the model in float32.

    A run that finds a checkpoint in `work` continues it and ends with the same weights as one that never stopped.
    Each worker is a process with one thread and takes every `num_workers`-th row of each batch. A single worker uses
    the GPU if there is one. Without a `course` exercises are taught.
    """
    course = course or Exercises()
    arguments = (num_workers, family, tokenizer, work, course, stop_after)
    work.mkdir(parents=True, exist_ok=True)
    course.prepare(tokenizer, work)
    if num_workers > 1:
        spawn(work_through, arguments, nprocs=num_workers)  # type: ignore[no-untyped-call]
    else:
        work_through(0, *arguments)
    return Run(family, tokenizer, work).model
