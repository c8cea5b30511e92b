"""From lines of an evaluation, one per policy and task, to rows that compare policies.

A line holds each metric's value per item, in the order of the items, so that any two policies can be paired again.
A metric is named `metric,filter`, as the harness does. Shares and scores are 0 to 1. `length` is that of
answers, in tokens.
"""

from collections.abc import Sequence
from typing import Any

from lynx_moe.lab.shared.intervals import mean_difference, proportion

Line = dict[str, Any]


def compare(found: Sequence[Line]) -> list[Line]:
    """The lines with `difference` and `difference_interval` in every metric and in the length, paired with the first
    line of the task.

    Raises ValueError if two policies were asked different questions.
    """
    base: dict[str, Line] = {}
    compared = []
    for line in found:
        first = base.setdefault(line["task"], line)
        if first["questions"] != line["questions"]:
            raise ValueError(f"{line['policy']} and {first['policy']} were asked different questions in {line['task']}")
        metrics = {key: value | _difference(value, first["metrics"][key]) for key, value in line["metrics"].items()}
        more = {"baseline": first["policy"], "metrics": metrics}
        if line.get("length") and first.get("length"):
            more["length"] = line["length"] | _difference(line["length"], first["length"])
        compared.append(line | more)
    return compared


def main_metric(line: Line) -> str:
    """The task's first metric that has a score of 0 to 1 per item; the first of all where none has."""
    names: list[str] = list(line["metrics"])
    return next((name for name in names if _shares(line["metrics"][name]["items"])), names[0])


def overall(found: Sequence[Line]) -> list[Line]:
    """One row per policy: the mean over tasks of their main metrics, each task with the same weight, with its interval
    and the paired difference to the first policy; the same of the length of answers, where it is known. Left out are
    tasks that decoded nothing, and those without a score of 0 to 1 per item."""
    rows: list[Line] = []
    base: list[float] = []
    base_lengths: list[float] = []
    idle = {line["task"] for line in found if not line["decode_steps"]}
    for policy in dict.fromkeys(line["policy"] for line in found):
        mine = [line for line in found if line["policy"] == policy and line["task"] not in idle]
        scored = [line for line in mine if _shares(line["metrics"][main_metric(line)]["items"])]
        weighted = _weighted([line["metrics"][main_metric(line)]["items"] for line in scored])
        if not weighted:
            continue
        base = base or weighted
        steps = sum(line["decode_steps"] for line in mine)
        row = {"policy": policy, "spec": mine[0]["spec"], "n": len(weighted), "num_tasks": len(scored)}
        row |= {"value": sum(weighted) / len(weighted), "interval": interval(weighted), **_change("", weighted, base)}
        if all(line.get("length") for line in scored) and (not rows or "length" in rows[0]):
            written = _weighted([line["length"]["items"] for line in scored])
            base_lengths = base_lengths or written
            row |= {"length": sum(written) / len(written), **_change("length_", written, base_lengths)}
        for key in ("before", "after"):
            # a policy's lines share their steps or have their own: the weighted mean is right in both cases
            row[key] = sum(line[key] * line["decode_steps"] for line in mine) / steps
        rows.append(row)
    return rows


def _change(of: str, values: Sequence[float], base: Sequence[float]) -> Line:
    """Of paired items, under names that begin with `of`."""
    difference = (sum(values) - sum(base)) / len(values)
    return {f"{of}difference": difference, f"{of}difference_interval": mean_difference(values, base)}


def control(found: Sequence[Line]) -> str:
    """The spec of the control that loads as many experts as the second policy did: `random` with that many to keep.

    Raises ValueError where there is no second policy, or where it decoded nothing.
    """
    rows = overall(found)
    if len(rows) < 2:
        raise ValueError("--control needs a second policy, with a score of 0 to 1 per item, whose experts it matches")
    return f"random:num_keep={round(rows[1]['after'])}"


def paired(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per policy, from what each got `right` of the same items: exact match with its 95 % interval, and the
    paired difference to the first policy."""
    base = results[0]["right"]
    return [
        {
            "policy": r["policy"],
            "spec": r["spec"],
            "n": len(base),
            "exact_match": sum(r["right"]) / len(base),
            "interval": proportion(r["right"]),
            "difference": (sum(r["right"]) - sum(base)) / len(base),
            "difference_interval": mean_difference(r["right"], base),
            "before": r["before"],
            "after": r["after"],
        }
        for r in results
    ]


def _weighted(items: Sequence[Sequence[float]]) -> list[float]:
    """All items, such that their plain mean is the mean of the tasks' means."""
    n = sum(map(len, items))
    return [item * n / len(each) / len(items) for each in items for item in each]


def _shares(items: Sequence[float] | None) -> bool:
    return items is not None and all(0 <= item <= 1 for item in items)


def interval(values: Sequence[float]) -> list[float]:
    """Of a mean: Wilson's where it is a share of hits, else the bootstrap's."""
    if set(values) <= {0.0, 1.0}:
        return proportion([value == 1 for value in values])
    return mean_difference(values, [0.0] * len(values))


def _difference(metric: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    both = metric["items"] is not None and base["items"] is not None
    return {
        "difference": metric["value"] - base["value"],
        "difference_interval": mean_difference(metric["items"], base["items"]) if both else None,
    }
