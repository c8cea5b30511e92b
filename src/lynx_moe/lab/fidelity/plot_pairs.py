"""The picture of twins trained with and without load balancing: KL, experts and accuracy under one policy."""

from pathlib import Path
from typing import Any

from lynx_moe.lab.fidelity.pairs import load
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.plots import COLORS, save

TWINS = {"balanced": (COLORS[1], -0.15), "unbalanced": (COLORS[6], 0.15)}


def draw(folder: Path, path: Path, policy: str = "lynx") -> Path:
    """A row per family, the twins one below the other; left KL, middle experts, right what exact match lost or won.

    Raises ValueError as `load` does, and where no pair was measured under `policy`.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pairs = [pair for pair in load(folder) if pair["policy"] == policy]
    if not pairs:
        raise ValueError(f"{folder} holds no pair under {policy!r}")
    figure, panels = plt.subplots(1, 3, figsize=(12, 1.8 + 0.6 * len(pairs)), sharey=True)
    for place, pair in enumerate(pairs):
        for kind, (color, shift) in TWINS.items():
            _twin(panels, pair[kind], place + shift, color, pair["balanced"]["before"])
    left, middle, right = panels
    left.set_yticks(range(len(pairs)), [pair["name"] for pair in pairs])
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xlabel("KL(exact || policy), millinats a token")
    middle.set_xlim(0, 1.05)
    middle.set_xlabel("distinct experts, share of what the balanced\ntwin loads by itself: before (hollow), after")
    right.axvline(0, color="#888888", linewidth=0.8)
    counts = {pair[kind]["exact"]["n"] for pair in pairs for kind in TWINS if pair[kind]["exact"]}
    items = f",\n{' or '.join(map(str, sorted(counts)))} items a model" if counts else ": not measured"
    right.set_xlabel(f"exact match, paired difference, points{items}")
    for axes in panels:
        axes.grid(alpha=0.3, axis="x")
    marks = [left.plot([], [], "o", color=color, label=kind)[0] for kind, (color, _) in TWINS.items()]
    bottom = 0.35 / figure.get_figheight()
    figure.legend(handles=marks, loc="lower center", ncols=2, fontsize=9, frameon=False, bbox_to_anchor=(0.5, 0.0))
    line = pairs[0]["balanced"]
    title = f"{policy}, batches of {line['batch_size']} of mixed tasks, {line['num_tokens']} tokens, 95 % intervals"
    figure.suptitle(title, fontsize=11)
    first = folder / pairs[0]["name"] / "fidelity.jsonl"
    save(figure, lines.load(first, "fidelity")["environment"], path, bottom)
    plt.close(figure)
    return path


def _twin(panels: Any, line: dict[str, Any], place: float, color: str, own: float) -> None:
    left, middle, right = panels
    _point(left, line["kl"], line["kl_interval"], place, color, 1000)
    before, after = line["before"] / own, line["after"] / own
    middle.annotate("", (after, place), (before, place), arrowprops={"arrowstyle": "->", "color": color})
    middle.plot(before, place, "o", color=color, markerfacecolor="white")
    middle.plot(after, place, "o", color=color)
    middle.annotate(f"{100 * after / before:.0f} %", (after, place), xytext=(-7, 0), ha="right", va="center",
                    textcoords="offset points", fontsize=8, color=color)  # fmt: skip
    if line["exact"]:
        _point(right, line["exact"]["difference"], line["exact"]["difference_interval"], place, color, 100)


def _point(axes: Any, value: float, interval: list[float], place: float, color: str, scale: int) -> None:
    spread = [[scale * max(0.0, value - interval[0])], [scale * max(0.0, interval[1] - value)]]
    axes.errorbar(scale * value, place, xerr=spread, fmt="o", color=color, capsize=3)
