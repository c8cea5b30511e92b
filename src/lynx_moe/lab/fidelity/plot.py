"""The picture of a fidelity record: KL against the share of experts that are loaded, a panel per batch size."""

from pathlib import Path
from typing import Any

from lynx_moe.lab.shared.plots import COLORS, save


def draw(record: dict[str, Any], path: Path) -> Path:
    """A panel per batch size, a point per policy with its interval, filled for mixed batches and hollow for batches of
    one group. Raises ValueError for a record without results."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    results = [line for line in record["results"] if line["spec"] != "vanilla"]
    if not results:
        raise ValueError("the record holds no policy but vanilla, so there is nothing to draw")
    sizes = sorted({line["batch_size"] for line in results})
    specs = list(dict.fromkeys(line["spec"] for line in results))
    caches = list(dict.fromkeys(line["cache"] for line in results))
    figure, (*grid, below) = plt.subplots(
        len(caches) + 1,
        len(sizes),
        figsize=(max(8.0, 1 + 2.9 * len(sizes)), 1.8 + 3.1 * len(caches)),
        height_ratios=[1] * len(caches) + [0.22],
        squeeze=False,
    )
    for row, cache in zip(grid, caches, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            for line in results:
                if (line["batch_size"], line["cache"]) == (size, cache):
                    _point(axes, line, COLORS[specs.index(line["spec"]) % len(COLORS)])
            axes.set_title(f"batch {size}, {cache} cache", fontsize=10)
            axes.set_xlim(0, 1.02)
            axes.set_ylim(0, 1.5 * max(line["kl_interval"][1] for line in results))
            axes.set_yscale("symlog", linthresh=1e-4)
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("experts loaded, share of the model's own")
    for row in grid:
        row[0].set_ylabel("KL(exact || policy), nats a token")
    for axes in below:
        axes.axis("off")
    marks = {spec: {"color": COLORS[number % len(COLORS)]} for number, spec in enumerate(specs)}
    marks |= {"all groups mixed": {"color": "gray"}, "one group a batch": {"color": "gray", "markerfacecolor": "white"}}
    handles = [below[0].plot([], [], "o", label=label, **style)[0] for label, style in marks.items()]
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.04), ncols=4, fontsize=8, frameon=False)
    name, tokens = Path(record["settings"]["model"]).name, max(line["num_tokens"] for line in results)
    title = f"{name} on {Path(record['settings']['data']).name}: up to {tokens} tokens a point, 95 % intervals"
    figure.suptitle(title, fontsize=10)
    save(figure, record["environment"], path)
    plt.close(figure)
    return path


def _point(axes: Any, line: dict[str, Any], color: str) -> None:
    low, high = line["kl_interval"]
    face = color if line["mix"] == "mixed" else "white"
    spread = [[max(0.0, line["kl"] - low)], [max(0.0, high - line["kl"])]]
    axes.errorbar(
        line["after"] / line["before"], line["kl"], spread, fmt="o", color=color, markerfacecolor=face, capsize=3
    )
