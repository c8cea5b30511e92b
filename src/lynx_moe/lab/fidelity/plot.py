"""The picture of a fidelity record: KL and the true token's log-likelihood against the share of experts loaded."""

from pathlib import Path
from typing import Any

from lynx_moe.lab.shared.plots import COLORS, save

FIGURES = {  # name -> axis; scaled by, linear up to
    "kl": ("KL(exact || policy), nats a token", 1, 1e-4),
    "gain": ("true token's log-likelihood gained,\nmnats (-10: 1 % of perplexity)", 1000, 1),
}


def draw(record: dict[str, Any], path: Path) -> Path:
    """A column per batch size, a row for KL and one for log-likelihood; a point per policy with its interval, filled
    for mixed batches and hollow for batches of one group. Raises ValueError for a record without results."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    results = [line for line in record["results"] if line["spec"] != "vanilla"]
    if not results:
        raise ValueError("the record holds no policy but vanilla, so there is nothing to draw")
    sizes = sorted({line["batch_size"] for line in results})
    specs = list(dict.fromkeys(line["spec"] for line in results))
    rows = [(cache, name) for cache in dict.fromkeys(line["cache"] for line in results) for name in FIGURES]
    figure, (*grid, below) = plt.subplots(
        len(rows) + 1,
        len(sizes),
        figsize=(max(8.0, 1 + 2.9 * len(sizes)), 1.8 + 2.8 * len(rows)),
        height_ratios=[1] * len(rows) + [0.22],
        squeeze=False,
    )
    for panels, (cache, name) in zip(grid, rows, strict=True):
        label, scale, linear = FIGURES[name]
        edges = [scale * edge for line in results for edge in line[f"{name}_interval"]]
        for axes, size in zip(panels, sizes, strict=True):
            for line in results:
                if (line["batch_size"], line["cache"]) == (size, cache):
                    _point(axes, line, name, COLORS[specs.index(line["spec"]) % len(COLORS)])
            axes.set_title(f"batch {size}, {cache} cache", fontsize=10)
            axes.set_xlim(0, 1.02)
            axes.set_ylim(1.5 * min(0, *edges), 1.5 * max(linear, *edges))
            axes.set_yscale("symlog", linthresh=linear)
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel("experts loaded, share of the model's own")
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


def _point(axes: Any, line: dict[str, Any], name: str, color: str) -> None:
    scale = FIGURES[name][1]
    value, low, high = (scale * number for number in (line[name], *line[f"{name}_interval"]))
    face = color if line["mix"] == "mixed" else "white"
    spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar(line["after"] / line["before"], value, spread, fmt="o", color=color, markerfacecolor=face, capsize=3)
