"""Pictures of a profile that need no reassignment: step time, expert use, distinct experts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lynx_moe.lab.profile.measure import part
from lynx_moe.lab.profile.show.words import percent
from lynx_moe.lab.shared.plots import COLORS

GRAY, BLUE, ORANGE = COLORS[:3]
Line = dict[str, Any]


def step_time(panels: Sequence[Any], whole: Line) -> None:
    for axes, line, color in zip(panels, part(whole, "time"), (BLUE, ORANGE), strict=True):
        x = np.array([point["experts"] for point in line["points"]])
        quartiles = np.percentile([point["ms"] for point in line["points"]], (25, 50, 75), axis=-1)
        axes.errorbar(x, quartiles[1], np.abs(quartiles[[0, 2]] - quartiles[1]), fmt="o", color=color, capsize=3)
        axes.plot(x, line["fit"]["base"] + line["fit"]["slope"] * x, "--", color=GRAY, label=_fit(line["fit"]))
        axes.set_ylim(0, 1.25 * quartiles.max())
        axes.set_title(f"{line['phase']}, {line['rows']} rows", fontsize=10)
        axes.set_xlabel("distinct experts per layer")
        axes.set_ylabel("ms per forward")
        axes.legend(fontsize=8, loc="lower right")


def _fit(fit: Line) -> str:
    r2 = "" if fit["r2"] is None else f", R² = {fit['r2']:.3f}"
    return f"{fit['base']:.1f} + {fit['slope']:.3f} × experts{r2}"


def use(panels: Sequence[Any], whole: Line) -> None:
    (axes,), (line,) = panels, part(whole, "routing")
    x = range(1, line["num_experts"] + 1)
    names = {
        "sorted_inside": (f"inside batches: spread {percent(line, 'inside')}", BLUE, "-"),
        "sorted_uniform": (f"same, uniform routing: {100 * line['inside_uniform']:.1f}", BLUE, ":"),
        "sorted_over_data": (
            f"whole data set: spread {percent(line, 'over_data')}",
            ORANGE,
            "-",
        ),
    }
    for name, (label, color, style) in names.items():
        axes.plot(x, [100 * share for share in line[name]], style, color=color, label=label)
    axes.axhline(100 * line["even"], color=GRAY, linewidth=0.8)
    axes.set_xlabel("experts of a layer, by use (each batch sorted by itself)")
    axes.set_ylabel("tokens that use it, %")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def distinct(panels: Sequence[Any], whole: Line) -> None:
    (axes,), (line,) = panels, part(whole, "routing")
    x = [point["batch_size"] for point in line["distinct"]]
    low, high = zip(*(point["range"] for point in line["distinct"]), strict=True)
    axes.fill_between(x, low, high, color=BLUE, alpha=0.2, label="95 % of the batches drawn")
    axes.plot(x, [point["mean"] for point in line["distinct"]], "o-", color=BLUE, label="this model")
    axes.plot(x, [point["uniform"] for point in line["distinct"]], "s--", color=GRAY, label="uniform routing")
    axes.axhline(line["num_experts"], color=GRAY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(size) for size in x])
    axes.set_xlabel("batch size")
    axes.set_ylabel("distinct experts per layer and step")
    axes.set_ylim(0, 1.08 * line["num_experts"])
    axes.legend(fontsize=8, loc="lower right")
