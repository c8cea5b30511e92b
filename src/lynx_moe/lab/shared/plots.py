"""Pictures of saved records. Nothing is measured here: each can be drawn again with `lynx-moe plot RECORD`."""

from pathlib import Path
from typing import Any

COLORS = ("#444444", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # safe for colour blindness


def demo(record: dict[str, Any], path: Path) -> Path:
    """One picture of both halves of a demo record: quality left, speed right."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), width_ratios=(1, 1, 1.1))
    names = [row["spec"] for row in record["quality"]["summary"]] + record["speed"]["policies"]
    colors = dict(zip(dict.fromkeys(names), COLORS, strict=False))
    _quality(left, record["quality"], colors)
    _layers(middle, record["quality"], colors)
    _speed(right, record["speed"], colors)
    save(figure, record["speed"]["environment"], path)
    plt.close(figure)
    return path


def save(figure: Any, env: dict[str, Any], path: Path, bottom: float = 0.03) -> None:
    """Writes the figure with the machine and the day of its record below it; folders are made. bottom: the share of
    its height that is kept free for that, and for a legend."""
    figure.text(0.01, 0.01, f"{env['cpu']}, {env['cores']} cores · {env['date'][:10]}", fontsize=7, color="#666666")
    figure.tight_layout(rect=(0, bottom, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _quality(axes: Any, record: dict[str, Any], colors: dict[str, str]) -> None:
    for number, row in enumerate(record["summary"]):
        value, (low, high) = 100 * row["exact_match"], (100 * edge for edge in row["interval"])
        axes.bar(number, value, color=colors[row["spec"]], width=0.65)
        axes.errorbar(number, value, yerr=[[value - low], [high - value]], color="black", capsize=4)
        axes.text(number, 3, f"{value:.1f} %\n{row['after']:.1f}\nexperts", ha="center", color="white", fontsize=9)
    axes.set_xticks(range(len(record["summary"])), [_wrap(row["spec"]) for row in record["summary"]], fontsize=8)
    axes.set_ylabel("exact match, %, with 95 % interval")
    axes.set_ylim(0, 100)
    axes.set_title(
        f"Quality: {record['model']},\nn = {len(record['tasks'])}, {record['concurrency']} concurrent", fontsize=10
    )


def _layers(axes: Any, record: dict[str, Any], colors: dict[str, str]) -> None:
    width = 0.8 / len(record["results"])
    for number, result in enumerate(record["results"]):
        layers = range(len(result["after_by_layer"]))
        shift = (number - (len(record["results"]) - 1) / 2) * width
        axes.bar(
            [x + shift for x in layers],
            result["after_by_layer"],
            width,
            color=colors[result["spec"]],
            label=result["spec"],
        )
    axes.set_xticks(list(layers))
    axes.set_xlabel("layer")
    axes.set_ylabel("distinct experts per decode step")
    axes.set_title("Distinct experts, trained model", fontsize=10)
    axes.set_ylim(top=1.6 * max(max(result["after_by_layer"]) for result in record["results"]))
    axes.legend(fontsize=8, loc="upper right")


def _speed(axes: Any, record: dict[str, Any], colors: dict[str, str]) -> None:
    for policy in record["policies"]:
        rows = [row for row in record["summary"] if row["policy"] == policy]
        x = range(len(rows))
        tpot = [row["tpot_ms"] for row in rows]
        spread = [[t - row["tpot_range_ms"][0] for t, row in zip(tpot, rows, strict=True)],
                  [row["tpot_range_ms"][1] - t for t, row in zip(tpot, rows, strict=True)]]  # fmt: skip
        axes.errorbar(x, tpot, yerr=spread, color=colors[policy], marker="o", capsize=3, label=policy)
    for place, batch in enumerate(record["batch_sizes"]):
        mine = [row for row in record["summary"] if row["batch"] == batch and row["after"] is not None]
        mine.sort(key=lambda row: -row["tpot_ms"])
        for number, row in enumerate(mine):  # the uppermost above its point, the lowest below, others at the sides
            aside = (-14, 2) if number % 2 else (14, -6)
            spot = (0, 8) if number == 0 else (0, -14) if number == len(mine) - 1 else aside
            axes.annotate(f"{row['after']:.0f}", (place, row["tpot_ms"]), xytext=spot, ha="center",
                          textcoords="offset points", fontsize=8, color=colors[row["policy"]])  # fmt: skip
    axes.set_xticks(range(len(record["batch_sizes"])), [str(b) for b in record["batch_sizes"]])
    axes.set_xlabel("batch size (the numbers at the points: distinct experts)")
    axes.margins(x=0.09)
    axes.set_ylabel("TPOT, ms, median and range")
    axes.set_ylim(0, 1.15 * max(row["tpot_range_ms"][1] for row in record["summary"]))
    axes.set_title(f"Speed: {record['model'].replace(', random', ',' + chr(10) + 'random')}", fontsize=10)
    axes.legend(fontsize=8)


def _wrap(spec: str) -> str:
    return spec.replace(":", ":\n").replace(",", ",\n")
