"""`lynx-moe fidelity --tiers`: rows that ask different prices in one batch, beside the same rows among their like.

A batch is decoded mixed as often as there are tiers, so that every sequence is in every tier once, and once for each
tier with all of its rows in it. A tier's figure is paired by sequence: among others less among its like.

A record is a JSONL file: a line of settings, then a line per batch size, mix of groups, cache, policy and tier.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.fidelity.measure import Line, Settings, check_memory, documents, open_model
from lynx_moe.lab.shared import lines, tables
from lynx_moe.lab.shared.documents import Batch, batches
from lynx_moe.lab.shared.intervals import weighted_mean
from lynx_moe.policies import make_policy
from lynx_moe.routing import Rows

EXACT = "exact"
KIND = "tiers"
HEAD = ("batch", "policy", "tier", "KL, mnats", "among its like", "difference", "experts", "among its like")


def tiers_of(text: str) -> dict[str, float]:
    """Tier -> price, from prices and "exact" between spaces. Raises ValueError unless there are two or more, all
    different."""
    try:
        found = [(name, 0.0 if name == EXACT else float(name)) for name in text.split()]
    except ValueError:
        raise ValueError(
            f"--tiers {text!r}: give prices and {EXACT!r} between spaces, such as '0.01 0.1 {EXACT}'"
        ) from None
    prices = [price for _, price in found]
    if not all(0 <= price < float("inf") for price in prices):
        raise ValueError(f"--tiers {text!r}: a price must be 0 ({EXACT}) or more, and finite")
    if len(set(prices)) < max(2, len(prices)):
        raise ValueError(f"--tiers {text!r}: give two tiers or more, each of them once")
    return dict(found)


def dealt(num_rows: int, num_tiers: int, turn: int) -> list[int]:
    """Each row's tier: as many of each as can be, and every row in another one at every turn."""
    return [(row + turn) % num_tiers for row in range(num_rows)]


def measure(
    settings: Settings,
    policies: Sequence[str],
    tiers: Mapping[str, float],
    path: Path,
    advance: Callable[[str], None] = lambda message: None,
    max_gib: float | None = None,
) -> Line:
    """Measures what the record at `path` lacks, and returns the whole of it.

    Raises ValueError as `fidelity.measure` does, for a policy that knows no prices, and for batches with fewer rows
    than tiers.
    """
    specs = lines.specs_of(policies)
    for spec in specs:
        if make_policy(spec).at_price(2.0).asks != 2.0:
            raise ValueError(
                f"--tiers asks prices of {spec!r}, which knows none; name a policy that does, such as priced"
            )
    if min(settings.batch_sizes) < len(tiers):
        raise ValueError(
            f"a batch of {min(settings.batch_sizes)} has no row for each of {len(tiers)} tiers; raise --batch-sizes"
        )
    whole = lines.begin(path, KIND, asdict(settings) | {"policies": specs, "tiers": dict(tiers)})
    done = {(line["batch_size"], line["mix"], line["cache"], line["policy"]) for line in whole["results"]}
    parts = [(b, m, c, p) for b in settings.batch_sizes for m in settings.mixes for c in settings.caches for p in specs]
    missing = [part for part in parts if part not in done]
    if not missing:
        return whole
    found = documents(settings)
    cuts = {part: batches(found, part[0], part[1], settings.seed) for part in missing}
    for size in sorted({part[0] for part, cut in cuts.items() if not cut}):
        raise ValueError(f"no group has {size} sequences; raise --sequences, give more data, or lower --batch-sizes")
    advance("loading the model")
    model, _ = open_model(settings, [])
    check_memory(model, [(part[2], cut) for part, cut in cuts.items()], 2 * len(tiers), max_gib)
    for number, ((size, mix, cache, spec), cut) in enumerate(cuts.items(), 1):
        advance(f"{number} of {len(cuts)}: batch {size}, {mix} group{'s' * (mix == 'mixed')}, {cache} cache, {spec}")
        part = {"kind": KIND, "batch_size": size, "mix": mix, "cache": cache, "policy": spec}
        whole["results"] += [part | line for line in compared(model, cut, spec, tiers, cache)]
        lines.save(whole, path)
    return whole


def compared(model: Any, cut: Sequence[Batch], spec: str, tiers: Mapping[str, float], cache: str) -> list[Line]:
    """A line per tier: `kl`, `alike` (among its like) and `difference`, in nats a token, with 95 % intervals (bootstrap
    over sequences) and each sequence's means; distinct experts of mixed steps (the model's own,
    and what is left), and of steps of this tier alone."""
    names, prices = list(tiers), torch.tensor(list(tiers.values()), dtype=torch.float32)
    size, steps = len(cut[0].members), [batch.num_steps for batch in cut for _ in batch.members]
    turns = [torch.tensor(dealt(size, len(names), turn)) for turn in range(len(names))]
    asked = [prices[places_B] for places_B in turns] + [price.repeat(size) for price in prices]
    runs = [_asking(model, spec, price_B) for price_B in asked]
    kl: list[list[list[float]]] = []  # by batch, run, sequence
    for batch in cut:
        kl.append([effect.kl.mean(0).tolist() for effect in decode(model, batch, runs, cache)])
    stats = [run.stats() for run in runs]
    found = []
    for tier, name in enumerate(names):
        turn_of = [next(turn for turn, places in enumerate(turns) if places[row] == tier) for row in range(size)]
        mixed = [batch[turn_of[row]][row] for batch in kl for row in range(size)]
        alike = [value for batch in kl for value in batch[len(names) + tier]]
        line: Line = {"tier": name, "num_sequences": len(steps), "num_tokens": sum(steps)}
        pairs = {"kl": mixed, "alike": alike, "difference": [a - b for a, b in zip(mixed, alike, strict=True)]}
        for key, values in pairs.items():
            line[key] = sum(value * count for value, count in zip(values, steps, strict=True)) / sum(steps)
            line[f"{key}_interval"] = weighted_mean(values, steps)
            line[f"{key}_by_sequence"] = [round(value, 9) for value in values]
        line["before"] = stats[0].mean_before
        line["after"] = sum(stat.mean_after for stat in stats[: len(names)]) / len(names)
        line["alike_after"] = stats[len(names) + tier].mean_after
        found.append(line | {"steps_by_sequence": steps})
    return found


def _asking(model: Any, spec: str, price_B: torch.Tensor) -> Run:
    """A run whose rows ask these prices in every step, not installed."""
    run = apply(model, spec)
    run.rows = Rows(price=price_B.to(next(model.parameters()).device))
    return run


def rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """KL in thousandths of a nat: in mixed batches, in batches of one tier, and the paired difference."""

    def text(line: dict[str, Any], name: str, sign: str = "") -> str:
        low, high = (1000 * edge for edge in line[f"{name}_interval"])
        return f"{1000 * line[name]:{sign}.2f} [{low:{sign}.2f}, {high:{sign}.2f}]"

    return [
        (
            f"{line['batch_size']} {line['mix']}",
            line["policy"],
            line["tier"],
            *(text(line, "kl"), text(line, "alike"), text(line, "difference", "+")),
            *(f"{line['before']:.1f} → {line['after']:.1f}", f"{line['alike_after']:.1f}"),
        )
        for line in results
    ]


def page(results: Sequence[dict[str, Any]]) -> str:
    """The tables as Markdown."""
    parts = [
        f"{title.capitalize()}:\n\n{tables.markdown(HEAD, rows(each))}\n"
        for title, each in tables.by_cache(results).items()
    ]
    return "\n".join(parts)
