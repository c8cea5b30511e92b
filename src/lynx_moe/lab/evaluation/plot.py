"""The picture of an evaluation record: what is won in experts against what is lost in quality."""

from pathlib import Path
from typing import Any

from lynx_moe.lab.shared.plots import COLORS, save
from lynx_moe.lab.shared.scores import main_metric, overall


def draw(record: dict[str, Any], path: Path) -> Path:
    """Left the mean over tasks against distinct experts, right what each task lost or won.

    Raises ValueError if no task of the record decoded anything and has a score of 0 to 1 per item.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = overall(record["results"])
    if not rows:
        raise ValueError("no task here has a score of 0 to 1 per item, so there is no mean to draw")
    num_tasks = len({line["task"] for line in record["results"]})
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, max(4.2, 1.8 + 0.28 * num_tasks)))
    _tradeoff(left, rows, record["settings"])
    _by_task(right, rows, record["results"])
    save(figure, record["environment"], path)
    plt.close(figure)
    return path


def _tradeoff(axes: Any, rows: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    for number, row in enumerate(rows):
        value, (low, high) = 100 * row["value"], (100 * edge for edge in row["interval"])
        color = COLORS[number % len(COLORS)]
        axes.errorbar(row["after"], value, [[value - low], [high - value]], None, "o", color=color, capsize=4)
        written = f", answers {row['length_difference']:+.1f} tokens" if number and "length" in row else ""
        axes.annotate(
            row["spec"] + written,
            (row["after"], value),
            xytext=(6, 6),
            textcoords="offset points",
            color=color,
            fontsize=8,
        )
    axes.margins(x=0.15)
    axes.set_xlabel("distinct experts per layer and decode step")
    axes.set_ylabel(f"mean of {rows[0]['num_tasks']} tasks, %, with 95 % interval")
    batches = f"{settings['concurrency']} concurrent, {settings['mix']}"
    axes.set_title(f"{Path(settings['model']).name}, n = {rows[0]['n']}, {batches}", fontsize=10)


def _by_task(axes: Any, rows: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    tasks = list(dict.fromkeys(line["task"] for line in results))
    for number, row in enumerate(rows[1:], 1):
        lines = [line for line in results if line["policy"] == row["policy"]]
        metrics = [(line["task"], line["metrics"][main_metric(line)]) for line in lines]
        drawn = [(tasks.index(task), metric) for task, metric in metrics if metric["difference_interval"]]
        x = [100 * metric["difference"] for _, metric in drawn]
        edges = [[100 * edge for edge in metric["difference_interval"]] for _, metric in drawn]
        spread = [[v - low for v, (low, _) in zip(x, edges, strict=True)]]
        spread += [[high - v for v, (_, high) in zip(x, edges, strict=True)]]
        y = [place + (number - len(rows) / 2) * 0.7 / len(rows) for place, _ in drawn]
        color = COLORS[number % len(COLORS)]
        axes.errorbar(x, y, None, spread, "o", color=color, markersize=4, capsize=2, label=row["spec"])
    axes.axvline(0, color=COLORS[0], linewidth=1)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"percentage points against {rows[0]['spec']}, paired, with 95 % interval")
    axes.set_title("What each task lost or won", fontsize=10)
    if len(rows) > 1:
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
