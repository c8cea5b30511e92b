"""Published route traces: which experts tokens chose, and with what weights, without the router's logits.

A numpy file (.npz) of L layers, N tokens, K experts a token:

    ids          [L, N, K] whole numbers, the experts of a token
    weights      [L, N, K] floats, their router scores, falling or not, renormalised or not
    sequence     [N] whole numbers: which sequence a token belongs to; its tokens stand in their order
    num_experts  optional, one number; without it the largest id decides
    task         [N] whole numbers, and tasks [.] their names: both optional

Batches are drawn from it as a server would decode them: B sequences side by side, each from a place of its own on, a
token each per step. What comes out is a recording, with a row's own experts at the logarithm of their weights and all
others far below: enough for policies whose word `own_only` says that they look no further.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from lynx_moe.lab.replay.recording import Recorded, Recording
from lynx_moe.routing import RouterSpec, Routing

MIXES = ("one", "mixed")
UNKNOWN = -1e4  # logit: below that of any weight, but finite, so that a row may still get such an expert
LEAST = 1e-30  # weight: some files round small ones to 0


@dataclass(frozen=True, eq=False)
class Routes:
    """A trace in memory; task_N and names are one task called "all" where the file has none."""

    ids_LNK: np.ndarray
    weights_LNK: np.ndarray
    sequence_N: np.ndarray
    task_N: np.ndarray
    names: tuple[str, ...]
    num_experts: int


def load(path: Path) -> Routes:
    """The trace at `path`. Raises ValueError that says what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        routes = _routes(parts)
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is not a readable route trace (docs/routes.md has the format): {error}") from None
    return routes


def _routes(parts: dict[str, np.ndarray]) -> Routes:
    missing = {"ids", "weights", "sequence"} - parts.keys()
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(parts)) or 'nothing'}")
    ids, weights, sequence = parts["ids"].astype(np.int64), parts["weights"].astype(np.float32), parts["sequence"]
    if ids.ndim != 3 or ids.size == 0 or weights.shape != ids.shape or sequence.shape != ids.shape[1:2]:
        shapes = f"ids {ids.shape}, weights {weights.shape}, sequence {sequence.shape}"
        raise ValueError(f"shapes do not fit: {shapes}; wanted [L, N, K] twice and [N]")
    num_experts = int(parts["num_experts"]) if "num_experts" in parts else int(ids.max()) + 1
    if ids.min() < 0 or ids.max() >= num_experts:
        raise ValueError(f"ids lie from {ids.min()} to {ids.max()}, with {num_experts} experts")
    if (np.diff(np.sort(ids, -1), axis=-1) == 0).any():
        raise ValueError("a token names an expert twice")
    if not np.isfinite(weights).all() or weights.min() < 0:
        raise ValueError("weights must be finite, and 0 or more")
    task = parts.get("task", np.zeros(ids.shape[1], dtype=np.int64)).astype(np.int64)
    names = tuple(map(str, parts.get("tasks", [f"task {number}" for number in range(int(task.max()) + 1)])))
    if task.shape != sequence.shape or task.min() < 0 or task.max() >= len(names):
        raise ValueError(f"task has shape {task.shape} and numbers up to {task.max()}, for {len(names)} names")
    return Routes(ids, weights, sequence, task, names if "task" in parts else ("all",), num_experts)


def draw(routes: Routes, batch: int, mix: str, steps: int, num_batches: int, seed: int) -> Recording:
    """Batches of `batch` sequences that decode `steps` tokens, one batch after another.

    mix: "mixed" draws from all tasks alike, "one" keeps a batch to one of them, each in turn. A batch is made of
    stretches of `steps` tokens; a long sequence may be there with several of them, and no token stands twice in it.

    Raises ValueError if no task has enough tokens.
    """
    if mix not in MIXES:
        raise ValueError(f"mix={mix!r} is unknown; allowed: {', '.join(MIXES)}")
    if min(batch, steps, num_batches) < 1:
        raise ValueError(f"batch size {batch}, {steps} steps and {num_batches} batches must all be at least 1")
    rng = np.random.default_rng(seed)
    tasks = range(len(routes.names))
    pools = [list(tasks)] if mix == "mixed" else [[task] for task in tasks]
    found = {turn: starts for turn, pool in enumerate(pools) if len(starts := _stretches(routes, pool, steps)) >= batch}
    if not found:
        raise ValueError(f"no batch of {batch} can be drawn, tasks {mix}: too few stretches of {steps} tokens")
    turns, tokens = list(found), []
    for number in range(num_batches):
        starts = found[turns[number % len(turns)]]
        tokens.append(rng.choice(starts, batch, replace=False)[None, :] + np.arange(steps)[:, None])
    return _recording(routes, np.stack(tokens), mix)


def _stretches(routes: Routes, tasks: Sequence[int], steps: int) -> np.ndarray:
    """[.]: where stretches of `steps` tokens of one sequence begin, none over another; the first of them at a place
    that differs from sequence to sequence, since prompts of a task begin alike."""
    edges = np.flatnonzero(np.r_[True, np.diff(routes.sequence_N) != 0, True])
    found = [np.zeros(0, dtype=np.int64)]
    for number, (start, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        if routes.task_N[start] in tasks:
            spare = (end - start) % steps
            found.append(np.arange(start + (number * 7) % (spare + 1), end - steps + 1, steps))
    return np.concatenate(found)


def _recording(routes: Routes, token_RSB: np.ndarray, mix: str) -> Recording:
    runs, steps, batch = token_RSB.shape
    place_N = torch.from_numpy(token_RSB.reshape(-1))
    top_k = routes.ids_LNK.shape[-1]
    spec = RouterSpec(num_experts=routes.num_experts, top_k=top_k, renormalize=False)
    layers = []
    for number, (ids_NK, weights_NK) in enumerate(zip(routes.ids_LNK, routes.weights_LNK, strict=True)):
        own = Routing(torch.from_numpy(ids_NK)[place_N], torch.from_numpy(weights_NK)[place_N])
        layers.append(Recorded(f"model.layers.{number}.mlp", spec, _logits(own, routes.num_experts), own))
    shape = {"model_type": "routes", "num_layers": len(layers), "num_experts": routes.num_experts, "top_k": top_k}
    facts: dict[str, Any] = {"shape": shape, "own_only": True, "run": steps, "mix": mix}
    rows = torch.full((runs * steps,), batch, dtype=torch.int32)
    return Recording(tuple(layers), rows, torch.ones(len(place_N), dtype=torch.bool), facts)


def _logits(own: Routing, num_experts: int) -> Tensor:
    """[N, E]: softmax of these gives a row's own experts their weights' shares."""
    unknown_NE = torch.full((len(own.ids), num_experts), UNKNOWN)
    return unknown_NE.scatter(-1, own.ids, own.weights.clamp(min=LEAST).log())
