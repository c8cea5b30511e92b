"""From the harness's results to one line per policy and task (`lab/shared/scores.py` says what a line holds)."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lynx_moe.lab.shared.intervals import mean_difference
from lynx_moe.lab.shared.scores import Line, interval


def lines(
    policy: str,
    spec: str,
    results: dict[str, Any],
    parts: Sequence[tuple[list[str], Any]],
    lengths: Mapping[str, Mapping[int, Sequence[int]]] = MappingProxyType({}),
    sampled: Collection[str] = (),
) -> list[Line]:
    """One line per task of one policy's results; `parts`, `lengths` and `sampled` are what the engine kept, see
    `harness.Batches`."""
    found = []
    for task, samples in results["samples"].items():
        counts = next((experts(stats) for names, stats in parts if task in names), experts([]))
        found.append(
            {"kind": "result", "policy": policy, "spec": spec, "task": task}
            | {"n": results["n-samples"][task]["effective"], "questions": _questions(samples)}
            | counts
            | {"length": length(lengths.get(task)), "greedy": task not in sampled}
            | {"metrics": _metrics(results["results"][task], samples)}
        )
    return found


def experts(stats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Distinct experts per decode-only step, by layer and as their mean, from the workers' statistics. None where no
    step had two or more decode rows and nothing else: prompts are never remapped."""
    layers = {layer["name"]: layer["decode"] for worker in stats for layer in worker["layers"]}
    steps = max((tally["steps"] for tally in layers.values()), default=0)
    before = [tally["before"] / steps for tally in layers.values()] if steps else None
    after = [tally["after"] / steps for tally in layers.values()] if steps else None
    return {
        "decode_steps": steps,
        "steps": stats[0]["steps"] if stats else {},
        "before": sum(before) / len(before) if before else None,
        "after": sum(after) / len(after) if after else None,
        "before_by_layer": before,
        "after_by_layer": after,
        "guard": stats[0].get("guard") if stats else None,
    }


def length(items: Mapping[int, Sequence[int]] | None) -> dict[str, Any] | None:
    """Tokens of an answer, the mean over items with its interval, and each item's (the mean, where it was asked several
    times) in the order of the items; None for a task that writes nothing."""
    if not items:
        return None
    means = [sum(items[item]) / len(items[item]) for item in sorted(items)]
    return {"value": sum(means) / len(means), "interval": mean_difference(means, [0.0] * len(means)), "items": means}


def _metrics(values: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        name, comma, kept = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        mine = sorted((s for s in samples if s["filter"] == kept), key=lambda s: s["doc_id"])
        items = [_number(sample.get(name)) for sample in mine]
        scalar = None not in items and abs(sum(items) / len(items) - value) < 1e-6
        error = values.get(f"{name}_stderr,{kept}")
        around = [value - 1.96 * error, value + 1.96 * error] if isinstance(error, float) else None
        error_bars = interval(items) if scalar else around
        found[key] = {"value": value, "interval": error_bars, "items": items if scalar else None}
    return found


def _number(value: Any) -> Any:
    """The value of one item as a number; None for the parts of a score of all items together, such as BLEU."""
    return float(value) if hasattr(value, "__float__") else None


def _questions(samples: Sequence[dict[str, Any]]) -> str:
    """A digest of the items and the prompts they were asked with."""
    hashes = sorted((sample["doc_id"], sample["doc_hash"], sample["prompt_hash"]) for sample in samples)
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]
