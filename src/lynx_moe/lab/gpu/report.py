"""From the steps' records: the fit of step times, the share of the ideal saving, and the tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console

from lynx_moe.lab.shared import tables
from lynx_moe.lab.speed import verification

Record = dict[str, Any]
SPEED_HEAD = ("batch", "policy", "TPOT, ms", "tokens/s", "ratio", "experts", "of the ideal", "MoE kernels, ms")
MODES_HEAD = ("mode", "plain vLLM runs", "vanilla says the same", "priced loads fewer", "graphs may be swapped")


def fit(points: list[tuple[float, float, float]]) -> Record:
    """t = a + b * experts + c * rows by least squares, from (experts, rows, t) triples; R2 of it."""
    given = np.array(points, dtype=float)
    inputs = np.column_stack([np.ones(len(given)), given[:, 0], given[:, 1]])
    found, *_ = np.linalg.lstsq(inputs, given[:, 2], rcond=None)
    left, spread = given[:, 2] - inputs @ found, given[:, 2] - given[:, 2].mean()
    r2 = 1 - float(left @ left) / max(float(spread @ spread), 1e-30)
    return {"a": float(found[0]), "b": float(found[1]), "c": float(found[2]), "r2": r2, "n": len(given)}


def with_savings(result: Record, bytes_per_s: float | None) -> Record:
    """The record of a shape with its fit, and in each line of the summary `ideal_share`: of the time that the experts
    no longer read would take at this bandwidth, the part that the step became shorter by."""
    base = {row["batch"]: row for row in result["summary"] if row["policy"] == result["summary"][0]["policy"]}
    for row in result["summary"]:
        before, after = experts(result, row["policy"], row["batch"])
        row["before"], row["after"], row["ideal_share"] = before, after, None
        if bytes_per_s and before - after > 0.5:
            ideal_ms = 1e3 * result["layers"] * (before - after) * result["expert_bytes"] / bytes_per_s
            row["ideal_share"] = (base[row["batch"]]["tpot_ms"] - row["tpot_ms"]) / ideal_ms
    points = [(row["after"], row["batch"], row["tpot_ms"]) for row in result["summary"] if row["after"]]
    return {**result, "fit": fit(points) if len(points) > 3 else None}


def experts(result: Record, policy: str, batch: int) -> tuple[float, float]:
    """(before, after), distinct experts per layer; both the model's own for the baseline. A request alone has top-k."""
    if batch == 1:
        return result["top_k"], result["top_k"]
    counted = result["experts"]
    if policy in counted:
        both = counted[policy][str(batch)]
        return both["before"], both["after"]
    own = next(iter(counted.values()))[str(batch)]["before"]
    return own, own


def show(records: Mapping[str, Record], console: Console) -> None:
    """A table per step; a step that failed says so."""
    for name, record in records.items():
        if "failed" in record:
            console.print(f"[bold]{name}[/]: {record['failed']}\n{record['log']}", highlight=False, markup=False)
            continue
        result = record["result"]
        if name == "copy":
            console.print(f"copy: {result['bytes_per_s'] / 1e12:.3f} TB/s read and written")
        elif name == "decision":
            floors = ", ".join(f"{number}: {us:.2f} µs" for number, us in result["empty_us"].items())
            head = ("router", "rows", "policy", "µs a layer", "plain torch, µs")
            tables.show(f"Decision; empty launches {floors}", head, _decisions(result), console, "")
        elif name == "modes":
            rows = [(mode, *verdict.values()) for mode, verdict in result["modes"].items()]
            tables.show("Ways in which vLLM runs a step", MODES_HEAD, rows, console, "")
        elif "verification" in result:
            rows = verification.table(result["verification"])
            title = f"Verifying drafts: {result['title']}, {result['layers']} layers"
            tables.show(title, verification.HEAD, rows, console, verification.CAPTION)
        elif "summary" in result:
            tables.show(f"{result['title']}, {result['layers']} layers", SPEED_HEAD, _speeds(result), console, "")
            if result["fit"]:
                parts = "{a:.3f} + {b:.4f} experts + {c:.4f} rows (R2 {r2:.4f}, n {n})".format(**result["fit"])
                console.print(f"TPOT, ms = {parts}")
        else:
            console.print(f"{name}: {result}", highlight=False)


def _decisions(result: Record) -> list[tuple[str, ...]]:
    return [
        (line["router"], str(line["rows"]), line["policy"], f"{line['us']:.2f}", _number(line.get("torch_us")))
        for line in result["lines"]
    ]


def _speeds(result: Record) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for row in result["summary"]:
        kernels = result["kernels_us"].get(row["policy"], {}).get(str(row["batch"]))
        rows.append(
            (
                str(row["batch"]),
                row["policy"],
                f"{row['tpot_ms']:.3f}",
                f"{row['tokens_per_s']:.0f}",
                f"{row['speedup']:.2f}x",
                f"{row['after']:.1f} of {row['before']:.1f}",
                "-" if row["ideal_share"] is None else f"{100 * row['ideal_share']:.0f} %",
                _number(None if kernels is None else kernels["moe"] / 1e3),
            )
        )
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
