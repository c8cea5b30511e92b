"""Pictures of what reassignments cost: thousandths of a nat of KL per token, with 95 % intervals over sequences."""

from collections.abc import Sequence
from typing import Any

from lynx_moe.lab.profile.measure import part
from lynx_moe.lab.shared.plots import COLORS

GRAY, BLUE, ORANGE, GREEN = COLORS[:4]
Line = dict[str, Any]
KL = "KL, millinats a token"
NUM_WORST = 12


def phases(panels: Sequence[Any], whole: Line) -> None:
    (axes,) = panels
    lines = part(whole, "phases")
    names = list(dict.fromkeys(line["denied"] for line in lines))
    for phase, shift, color in (("decode", -0.12, BLUE), ("prefill", 0.12, ORANGE)):
        mine = [line for line in lines if line["phase"] == phase]
        points(axes, [names.index(line["denied"]) + shift for line in mine], mine, color, label=f"in {phase}")
    axes.set_xticks(range(len(names)), [f"{name}\ndenied" for name in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(fontsize=8, loc="lower right")
    logarithmic(panels)


def confidence(panels: Sequence[Any], whole: Line) -> None:
    lines = part(whole, "confidence")
    names = list(dict.fromkeys(line["denied"] for line in lines))
    for axes, name, color in zip(panels, names, (BLUE, GREEN), strict=True):
        mine = [line for line in lines if line["denied"] == name]
        points(axes, range(len(mine)), mine, color, style="o-")
        axes.set_xticks(range(len(mine)), [f"{line['from']:.2f}–{line['to']:.2f}" for line in mine], fontsize=8)
        axes.set_xlabel("favourite's share of the router's scores (quarters of tokens)", fontsize=8)
        axes.set_title(f"{name} denied", fontsize=10)


def ranks(panels: Sequence[Any], whole: Line) -> None:
    deny, keep = ([line for line in part(whole, "ranks") if line["what"] == what] for what in ("deny", "keep"))
    loads = part(whole, "routing")[0]["loads_by_rank"]
    tolerance = 1000 * whole["settings"]["tolerance"]
    for axes, lines, color in ((panels[0], deny, BLUE), (panels[1], keep, GREEN)):
        points(axes, [line["rank"] for line in lines], lines, color)
        axes.set_xticks([line["rank"] for line in lines])
        axes.axhline(tolerance, color=GRAY, linestyle=":", label=f"tolerance, {tolerance:g}")
        axes.legend(fontsize=8, loc="upper right")
    panels[0].set_xlabel("rank that is denied (0: the favourite)")
    panels[0].set_title("one rank denied, the next best takes over", fontsize=10)
    panels[1].set_xlabel("first r experts kept (below: distinct experts then)")
    panels[1].set_title("only the first r experts kept", fontsize=10)
    panels[1].set_xticks([line["rank"] for line in keep], [f"{r['rank']}\n{loads[r['rank'] - 1]:.1f}" for r in keep])
    logarithmic(panels)


def layers(panels: Sequence[Any], whole: Line) -> None:
    (axes,) = panels
    lines = part(whole, "layers")
    points(axes, [line["layer"] for line in lines], lines, BLUE)
    axes.set_xlabel("MoE layer in which each token loses a random half of the experts")
    if len(lines) <= 32:
        axes.set_xticks([line["layer"] for line in lines])


def experts(panels: Sequence[Any], whole: Line) -> None:
    lines = sorted(part(whole, "experts"), key=lambda line: -line["kl"])
    left, right = panels
    points(left, range(len(lines[:NUM_WORST])), lines[:NUM_WORST], ORANGE)
    names = [f"{line['layer']}.{line['expert']}" for line in lines[:NUM_WORST]]
    left.set_xticks(range(len(names)), names, rotation=60, fontsize=8)
    left.set_xlabel("layer.expert whose denial costs most")
    right.scatter([100 * line["use"] for line in lines], [1000 * line["kl"] for line in lines], s=9, color=BLUE)
    logarithmic([right])
    right.set_xlabel("tokens that use the expert, %")
    right.set_ylabel(KL)
    right.set_title("every expert tried", fontsize=10)


def points(axes: Any, x: Sequence[float], lines: Sequence[Line], color: str, style: str = "o", **more: Any) -> None:
    """The lines' KL with their intervals, from zero up."""
    kl = [1000 * line["kl"] for line in lines]
    low = [max(0.0, 1000 * (line["kl"] - line["kl_interval"][0])) for line in lines]
    high = [max(0.0, 1000 * (line["kl_interval"][1] - line["kl"])) for line in lines]
    axes.errorbar(x, kl, [low, high], fmt=style, color=color, capsize=3, **more)
    axes.set_ylabel(KL)
    axes.grid(axis="y", alpha=0.3)
    axes.autoscale(axis="y")
    axes.set_ylim(bottom=0)


def logarithmic(panels: Sequence[Any]) -> None:
    """For costs that differ by orders of magnitude: logarithmic from a tenth of a millinat up, alike in all panels."""
    top = 2 * max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, top)
