"""The pictures of a bakeoff: every method's front, and all of them at one share of experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lynx_moe.lab.bakeoff.fronts import fronts
from lynx_moe.lab.bakeoff.grids import short
from lynx_moe.lab.bakeoff.measure import name_of, tested
from lynx_moe.lab.shared.plots import save

Line = dict[str, Any]
HALF = 0.5
MARKS = "osv^Dp<>Xh*"


def draw(whole: Line, folder: Path) -> list[Path]:
    """Writes fronts.png, likelihood.png and half.png, the second where the record knows it. Raises ValueError for a
    record without tested settings."""
    found = fronts(tested(whole))
    if not found:
        raise ValueError("the record has no setting on split test yet; run the same `lynx-moe bakeoff` again")
    panels = {"fronts": _fronts, "likelihood": _likelihood, "half": _half}
    if any(one["exact"] is None for one in found):
        del panels["likelihood"]
    return [_picture(whole, found, folder / f"{name}.png", panel) for name, panel in panels.items()]


def _picture(whole: Line, found: Sequence[Line], path: Path, panel: Any) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes, mixes = (list(dict.fromkeys(one[key] for one in found)) for key in ("batch_size", "mix"))
    names = list(dict.fromkeys(one["policy"] for one in found))
    styles = {name: {"color": plt.get_cmap("tab20")(2 * n % 19), "marker": MARKS[n % len(MARKS)]}
              for n, name in enumerate(names)}  # fmt: skip
    figure, grid = plt.subplots(
        len(mixes), len(sizes), figsize=(1.5 + 4.6 * len(sizes), 1.2 + 4.4 * len(mixes)), squeeze=False, sharey="row"
    )
    for row, mix in zip(grid, mixes, strict=True):
        for axes, size in zip(row, sizes, strict=True):
            panel(axes, [one for one in found if (one["batch_size"], one["mix"]) == (size, mix)], styles)
            axes.set_title(name_of(size, mix), fontsize=10)
    handles = [grid[0][0].plot([], [], label=short(name), **style)[0] for name, style in styles.items()]
    variants = sorted({one["method"].partition(" ")[2] for one in found} - {""})
    if variants:
        words = (("k-", "as it comes"), ("k:", " or ".join(variants)))
        handles += [grid[0][0].plot([], [], line, label=label)[0] for line, label in words]
    columns = 2 + 2 * len(sizes)
    lines, height = -(-len(handles) // columns), figure.get_figheight()
    place = {"loc": "lower center", "ncols": columns, "bbox_to_anchor": (0.5, 0.2 / height)}
    figure.legend(handles=handles, fontsize=9, frameon=False, **place)
    tokens = min(line["num_tokens"] for line in tested(whole))
    title = f"{Path(whole['settings']['model']).name}: n = {tokens} tokens and more a panel, knobs chosen on other data"
    figure.suptitle(title, fontsize=11)
    save(figure, whole["environment"], path, bottom=(0.3 + 0.22 * lines) / height)
    plt.close(figure)
    return path


def _fronts(axes: Any, found: Sequence[Line], styles: dict[str, Line]) -> None:
    for one in found:
        x, y = ([setting[key] for setting in one["settings"]] for key in ("kept", "kl"))
        line = ":" if " " in one["method"] else "-"
        axes.plot(x, [max(value, 1e-6) for value in y], line, markersize=4, linewidth=1.2, **styles[one["policy"]])
    axes.set_yscale("log")
    axes.set_xlim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.set_xlabel("experts loaded, share of the model's own")
    axes.set_ylabel("KL(exact || policy), nats a token")


def _likelihood(axes: Any, found: Sequence[Line], styles: dict[str, Line]) -> None:
    for one in found:
        x, y = ([setting[key] for setting in one["settings"]] for key in ("kept", "gain"))
        line = ":" if " " in one["method"] else "-"
        axes.plot(x, [1000 * value for value in y], line, markersize=4, linewidth=1.2, **styles[one["policy"]])
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.set_xlabel("experts loaded, share of the model's own")
    axes.set_ylabel("true token's log-likelihood against the exact\nmodel's, mnats (-10: 1 % of perplexity)")


def _half(axes: Any, found: Sequence[Line], styles: dict[str, Line]) -> None:
    reach = sorted((one for one in found if one["at"][HALF]), key=lambda one: -one["at"][HALF]["kl"])
    for place, one in enumerate(reach):
        value, (low, high) = one["at"][HALF]["kl"], one["at"][HALF]["interval"]
        style = styles[one["policy"]]
        face = "white" if " " in one["method"] else style["color"]
        axes.errorbar(value, place, None, [[max(0, value - low)], [max(0, high - value)]], fmt=style["marker"],
                      color=style["color"], markerfacecolor=face, capsize=2, markersize=5)  # fmt: skip
        axes.annotate(
            short(one["method"]), (high, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7
        )
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_yticks([])
    axes.grid(alpha=0.3, axis="x")
    axes.set_xlabel(f"KL at {100 * HALF:.0f} % of the experts, nats a token, 95 % interval")
