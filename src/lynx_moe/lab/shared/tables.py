"""Records as tables, for a terminal (rich) and for Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lynx_moe.lab.shared.scores import overall
from lynx_moe.lab.shared.terminal import is_endless

QUALITY_HEAD = ("policy", "exact match, %", "paired difference", "distinct experts")
FIDELITY_HEAD = (
    "batch",
    "groups",
    "policy",
    "KL, mnats",
    "same top-1, %",
    "log-likelihood, mnats",
    "perplexity",
    "experts",
)
REPLAY_HEAD = (
    "policy",
    "distinct experts",
    "router mass kept, %",
    "own experts kept, %",
    "rows changed, %",
    "1000 x",
)
SPEED_HEAD = ("batch", "policy", "TPOT, ms", "tokens/s", "speed-up", "distinct experts")


def quality_table(
    summary: Sequence[dict[str, Any]], value: str = "exact_match", title: str = QUALITY_HEAD[1]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows; with the length of answers in tokens, and its paired difference, where it is known of all."""
    head, rows = ("policy", title, *QUALITY_HEAD[2:]), quality_rows(summary, value)
    if not all("length" in row for row in summary):
        return head, rows
    cells = [
        f"{row['length']:.1f}, {row['length_difference']:+.1f} [{', '.join(f'{edge:+.1f}' for edge in edges)}]"
        for row in summary
        if (edges := row["length_difference_interval"])
    ]
    return (*head, "output tokens"), [(*row, cell) for row, cell in zip(rows, cells, strict=True)]


def quality_rows(summary: Iterable[dict[str, Any]], value: str = "exact_match") -> list[tuple[str, ...]]:
    return [
        (
            row["spec"],
            f"{100 * row[value]:.1f} [{100 * row['interval'][0]:.1f}, {100 * row['interval'][1]:.1f}]",
            f"{100 * row['difference']:+.1f} [{100 * row['difference_interval'][0]:+.1f}, "
            f"{100 * row['difference_interval'][1]:+.1f}]",
            _experts(row),
        )
        for row in summary
    ]


def task_table(results: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of an evaluation: a row per task and metric, and one for the length of its answers; a column per
    policy. A cell holds the value with its
    interval, and below it the paired difference to the first policy; shares are in percent. What the names of all tasks
    begin with is left out."""
    tasks = list(dict.fromkeys(line["task"] for line in results))
    prefix = tasks[0][: tasks[0].rfind("_") + 1]
    shared = len(prefix) if len(tasks) > 1 and all(task.startswith(prefix) for task in tasks) else 0
    specs = {line["policy"]: line["spec"] for line in results}
    lines = {(line["task"], line["policy"]): line for line in results}
    rows = []
    for task in tasks:
        mine = [lines[task, policy] for policy in specs]
        for name in mine[0]["metrics"]:
            title = task[shared:] + ("" if len(mine[0]["metrics"]) == 1 else f"\n{name}")
            cells = [_value(line["metrics"][name], number > 0) for number, line in enumerate(mine)]
            rows.append((title, str(mine[0]["n"]), *cells))
        if all(line.get("length") for line in mine):
            how = "greedy" if all(line.get("greedy") for line in mine) else "sampled"
            cells = [_text(line["length"], number > 0, 1, 1) for number, line in enumerate(mine)]
            rows.append((f"{task[shared:]}\noutput tokens, {how}", str(mine[0]["n"]), *cells))
    return ("task", "n", *specs.values()), rows


def _value(metric: dict[str, Any], paired: bool) -> str:
    share = all(0 <= item <= 1 for item in metric["items"] or [2])
    return _text(metric, paired, *((100, 1) if share else (1, 3)))


def _text(metric: dict[str, Any], paired: bool, scale: int, digits: int) -> str:
    """The value with its interval, and below it the paired difference."""

    def text(value: float, interval: list[float] | None, sign: str) -> str:
        edges = "" if interval is None else f" [{', '.join(f'{scale * edge:{sign}.{digits}f}' for edge in interval)}]"
        return f"{scale * value:{sign}.{digits}f}{edges}"

    below = "\n" + text(metric["difference"], metric["difference_interval"], "+") if paired else ""
    return text(metric["value"], metric["interval"], "") + below


def speed_rows(summary: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Medians over the rounds, ± half their range."""
    baseline = summary[0]["policy"]
    return [
        (
            str(row["batch"]),
            row["policy"],
            f"{row['tpot_ms']:.1f} ±{_half(row['tpot_range_ms']):.1f}",
            f"{row['tokens_per_s']:.0f}",
            "baseline" if row["policy"] == baseline else f"{row['speedup']:.2f}x ±{_half(row['speedup_range']):.2f}",
            _experts(row),
        )
        for row in summary
    ]


def fidelity_rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Means over tokens with their intervals; KL, and what the true token's log-likelihood gained, in thousandths of a
    nat; perplexity of the true text, the exact model's and the policy's."""

    def text(line: dict[str, Any], name: str, scale: float, sign: str = "") -> str:
        low, high = (scale * edge for edge in line[f"{name}_interval"])
        return f"{scale * line[name]:{sign}.1f}\n[{low:{sign}.1f}, {high:{sign}.1f}]"

    return [
        (
            str(line["batch_size"]),
            line["mix"],
            line["spec"].replace(":", ":\n"),
            text(line, "kl", 1000),
            text(line, "agree", 100),
            text(line, "gain", 1000, "+"),
            f"{math.exp(-line['exact']):.4g} → {math.exp(-line['exact'] - line['gain']):.4g}",
            _experts(line) + (f"\nfullest {_experts(line, 'fullest_')}" if "fullest_after" in line else ""),
        )
        for line in results
    ]


def replay_table(
    found: Sequence[dict[str, Any]],
    ranks: int = 1,
    redundant: int | None = None,
    replicas: int = 1,
    slots: int | None = None,
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of what was asked for: with more than one rank the experts of the fullest one too, with copies by
    both choices between them, with replicas those of one of them, with slots the experts loaded into a cache; of routes
    batches and intervals."""
    where = ("batch", "tasks") if "batch" in found[0] else ()
    pairs = [(f"fullest of {ranks} ranks", "fullest_")] if ranks > 1 or redundant is not None else []
    pairs += [] if redundant is None else [("fullest, METRO's choice", "fewest_")]
    pairs += [(f"a replica of {replicas}", "replica_")] if replicas > 1 else []
    pairs += [(f"loads, {slots} slots", "loads_")] if slots is not None else []
    shares = list(zip(REPLAY_HEAD[2:-1], ("mass", "overlap", "changed"), strict=True))
    if where:  # of the experts that a row did not choose nothing is known
        shares = shares[1:]
    rows = []
    for line in found:
        cells = [line["policy"], _experts(line), *([_with_interval(line, "kept", 100)] if where else [])]
        cells += [_experts(line, name) for _, name in pairs]
        cells += [f"{100 * line[name]:.1f}" for _, name in shares]
        rows.append((*(str(line[name]) for name in where), *cells, _with_interval(line, "x", 1000)))
    titles = (title for title, _ in (*pairs, *shares))
    return (*where, *REPLAY_HEAD[:2], *(["kept, %"] if where else []), *titles, REPLAY_HEAD[-1]), rows


def _with_interval(line: dict[str, Any], name: str, scale: float) -> str:
    edges = line.get(f"{name}_interval")
    text = f"{scale * line[name]:.1f}"
    return text if edges is None else f"{text} [{', '.join(f'{scale * edge:.1f}' for edge in edges)}]"


def by_cache(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of a fidelity record under a title for each kind of cache."""
    titles = {"own": "policies read the cache they wrote", "exact": "policies read the exact model's cache"}
    caches = dict.fromkeys(line["cache"] for line in results)
    return {titles[cache]: [line for line in results if line["cache"] == cache] for cache in caches}


def _half(edges: Sequence[float]) -> float:
    return (edges[1] - edges[0]) / 2


def _experts(row: dict[str, Any], of: str = "") -> str:
    before, after = row[f"{of}before"], row[f"{of}after"]
    return "-" if after is None else f"{before:.1f} → {after:.1f}"


def show(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], console: Console, caption: str = "[95 % intervals]"
) -> None:
    """Prints a table, with a rule wherever the first of the columns named "batch" changes. A cell may have several
    lines, but where these are endless: there a row is one line."""
    below: str | None = "± half the range over the rounds" if tuple(head) == SPEED_HEAD else caption
    if head[-1] == REPLAY_HEAD[-1]:
        below = None
    table = Table()
    table.box, table.pad_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0)
    for name in head:
        table.add_column(name, no_wrap=name == "policy")
    if is_endless(console):
        rows = [tuple(one_line(cell) for cell in row) for row in rows]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(*row, end_section=following is not None and head[0] == "batch" and following[0] != row[0])
    for shown in (title, table, *([below] if below else [])):  # a table breaks its own title at its own width
        console.print(shown, markup=False, highlight=False)
    console.print()


def one_line(cell: str) -> str:
    return cell.replace(":\n", ":").replace("\n", " ")


def evaluation_markdown(results: Sequence[dict[str, Any]]) -> str:
    """`task_table` and below it the means over tasks with the distinct experts."""
    head, rows = task_table(results)
    rows = [tuple(cell.replace("\n", "<br>") for cell in row) for row in rows]
    parts = [markdown(head, rows)]
    if means := overall(results):
        parts.append(markdown(*quality_table(means, "value", "mean of tasks, %")))
    return "\n\n".join(parts) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fidelity_markdown(results: Sequence[dict[str, Any]]) -> str:
    parts = []
    for title, lines in by_cache(results).items():
        rows = [tuple(one_line(cell) for cell in row) for row in fidelity_rows(lines)]
        parts.append(f"{title.capitalize()}:\n\n{markdown(FIDELITY_HEAD, rows)}\n")
    return "\n".join(parts)


MARKDOWN = {"evaluation": evaluation_markdown, "fidelity": fidelity_markdown}
