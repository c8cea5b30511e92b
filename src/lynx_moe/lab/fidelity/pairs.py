"""Twins trained with and without load balancing, from saved records: what a policy saves and costs in each of them.

A folder holds `NAME/fidelity.jsonl` and `NAME-unbalanced/fidelity.jsonl`, and beside each perhaps an `eval.jsonl`.
"""

from pathlib import Path
from typing import Any

from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.intervals import mean_difference, weighted_mean
from lynx_moe.lab.shared.scores import main_metric, overall
from lynx_moe.lab.shared.tables import markdown

Line = dict[str, Any]
UNBALANCED = "-unbalanced"
HEAD = ("model", "policy", "KL, mnats", "same top-1, %", "distinct experts", "kept, %", "exact match, %", "difference")
GAP_HEAD = ("family", "policy", "kept, %", "KL, mnats", "exact match, points")


def load(folder: Path) -> list[Line]:
    """A line per family and policy: `name`, `policy`, and under `balanced` and `unbalanced` the line of the fidelity
    record, to which `exact` is added, the policy's row of the evaluation's means, or None.

    Raises ValueError where there is no pair, or where the two of a pair were given different text or items.
    """
    found: list[Line] = []
    for file in sorted(folder.glob(f"*{UNBALANCED}/fidelity.jsonl")):
        name = file.parent.name.removesuffix(UNBALANCED)
        if not (folder / name / file.name).is_file():
            continue
        balanced, unbalanced = (_policies(folder / twin) for twin in (name, name + UNBALANCED))
        for policy in balanced.keys() & unbalanced.keys():
            pair = {"balanced": balanced[policy], "unbalanced": unbalanced[policy]}
            exact = [line["exact"]["questions"] for line in pair.values() if line["exact"]]
            text = [[line[key] for key in ("groups", "steps_by_sequence")] for line in pair.values()]
            if text[0] != text[1] or exact[1:] != exact[:1] * (len(exact) - 1):
                raise ValueError(f"{name} and its twin were asked different things: measure both with the same flags")
            found.append({"name": name, "policy": policy, **pair})
    if not found:
        raise ValueError(f"{folder} holds no pair NAME/fidelity.jsonl, NAME{UNBALANCED}/fidelity.jsonl")
    return sorted(found, key=lambda pair: (pair["name"], pair["policy"]))


def _policies(folder: Path) -> dict[str, Line]:
    """Policy -> its line, of the largest mixed batch whose cache is the policy's own."""
    record = lines.load(folder / "fidelity.jsonl", "fidelity")
    mixed = [line for line in record["results"] if (line["mix"], line["cache"]) == ("mixed", "own")]
    found = {line["policy"]: line | {"exact": None} for line in sorted(mixed, key=lambda line: line["batch_size"])}
    if (folder / "eval.jsonl").is_file():
        results = lines.load(folder / "eval.jsonl", "evaluation")["results"]
        asked = {line["task"]: line["questions"] for line in results}
        rows = {row["policy"]: row | {"lost": _lost(results, row["policy"]), "questions": asked}
                for row in overall(results)}  # fmt: skip
        found = {policy: line | {"exact": rows.get(policy)} for policy, line in found.items()}
    return found


def _lost(results: list[Line], policy: str) -> list[float]:
    """What each item lost to the first policy of the record."""
    items = {(line["task"], line["policy"]): line["metrics"][main_metric(line)]["items"] for line in results}
    base, tasks = results[0]["policy"], dict.fromkeys(task for task, _ in items)
    return [a - b for task in tasks for a, b in zip(items[task, policy], items[task, base], strict=True)]


def gap(*pairs: Line) -> Line:
    """The unbalanced twins' figures less the balanced ones', means over `pairs`: `kept` (share of their own experts),
    `kl` in nats and its interval (paired over sequences), `exact` and its interval (paired over items) or None."""
    ones, others = ([pair[kind] for pair in pairs] for kind in ("balanced", "unbalanced"))
    twins = list(zip(ones, others, strict=True))
    kls = [b - a for one, other in twins for a, b in zip(one["kl_by_sequence"], other["kl_by_sequence"], strict=True)]
    kept = [other["after"] / other["before"] - one["after"] / one["before"] for one, other in twins]
    found = {
        "kept": sum(kept) / len(kept),
        "kl": sum(other["kl"] - one["kl"] for one, other in twins) / len(twins),
        "kl_interval": weighted_mean(kls, [steps for one in ones for steps in one["steps_by_sequence"]]),
        "exact": None,
    }
    if all(line["exact"] for line in ones + others):
        mine, base = ([item for line in side for item in line["exact"]["lost"]] for side in (others, ones))
        difference = sum(other["exact"]["difference"] - one["exact"]["difference"] for one, other in twins)
        found |= {"exact": difference / len(twins), "exact_interval": mean_difference(mine, base)}
    return found


def page(folder: Path) -> str:
    """Both tables as Markdown: every model by itself, and the twins' differences with their means."""
    pairs = load(folder)
    rows = [
        _row(pair["name"] + ending, pair["policy"], pair[kind])
        for pair in pairs
        for kind, ending in (("balanced", ""), ("unbalanced", UNBALANCED))
    ]
    gaps = [_gap_row(pair["name"], pair) for pair in pairs]
    for policy in dict.fromkeys(pair["policy"] for pair in pairs):
        gaps.append(_gap_row("mean", *(pair for pair in pairs if pair["policy"] == policy)))
    return f"{markdown(HEAD, rows)}\n\nUnbalanced less balanced:\n\n{markdown(GAP_HEAD, gaps)}\n"


def _row(name: str, policy: str, line: Line) -> tuple[str, ...]:
    exact = line["exact"]
    return (
        name,
        f"`{policy}`",
        _text(line["kl"], line["kl_interval"], 1000, ".2f"),
        f"{100 * line['agree']:.1f}",
        f"{line['before']:.1f} → {line['after']:.1f}",
        f"{100 * line['after'] / line['before']:.0f}",
        _text(exact["value"], exact["interval"], 100, ".1f") if exact else "",
        _text(exact["difference"], exact["difference_interval"], 100, "+.1f") if exact else "",
    )


def _gap_row(name: str, *pairs: Line) -> tuple[str, ...]:
    found = gap(*pairs)
    exact = _text(found["exact"], found["exact_interval"], 100, "+.1f") if found["exact"] is not None else ""
    kl = _text(found["kl"], found["kl_interval"], 1000, "+.2f")
    return name, f"`{pairs[0]['policy']}`", f"{100 * found['kept']:+.0f}", kl, exact


def _text(value: float, interval: list[float], scale: int, form: str) -> str:
    low, high = (f"{scale * edge:{form}}" for edge in interval)
    return f"{scale * value:{form}} [{low}, {high}]"
