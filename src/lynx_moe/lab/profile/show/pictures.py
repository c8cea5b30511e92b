"""The pictures of a profile: a table of them, each drawn alone or all on one board."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lynx_moe.lab.profile.measure import part
from lynx_moe.lab.profile.measures.routing import DRAWS
from lynx_moe.lab.profile.show import draw_costs, draw_routing, findings
from lynx_moe.lab.shared.plots import save

Line = dict[str, Any]
BOOTSTRAP = "bars: 95 % bootstrap over sequences"
TOKENS = "n = {tokens} tokens, 95 % bootstrap"


class Figure(NamedTuple):
    """panels: axes side by side that `draw` fills; `found`: what came out, `about`: how it was measured, in words;
    `note`: n and the interval, in the picture."""

    key: str
    title: str
    panels: int
    draw: Callable[[Sequence[Any], Line], None]
    found: Callable[[Line], str]
    about: str
    note: str = TOKENS


FIGURES = (
    Figure("time", "Step time against distinct experts", 2, draw_routing.step_time, findings.time,
           "The routing is forced to load a given number of experts. n = {rounds} interleaved rounds a point; points: "
           "medians, bars: quartiles, dashes: least squares. {how}.", "n = {rounds} rounds, quartiles"),
    Figure("use", "Expert use: data set against batches", 1, draw_routing.use, findings.use,
           "n = {tokens} decoded tokens of {sequences} sequences, {steps} batches of {batch}; [95 % bootstrap over "
           "sequences, over batches]; the spread is the root mean square distance from the even share."),
    Figure("phases", "The same reassignment in prefill and in decode", 1, draw_costs.phases, findings.phases,
           "Exact and changed model are compared on the same n = {tokens} tokens after the prefix "
           "({sequences} sequences). In decode these tokens are reassigned themselves, in prefill those that they "
           "read; {bars}."),
    Figure("confidence", "Sensitivity by router confidence", 2, draw_costs.confidence, findings.confidence,
           "n = {tokens} decoded tokens in quarters; every step reads the exact model's cache, so each token shows its "
           "own damage; {bars}."),
    Figure("ranks", "Ranks: denied one by one, and kept up to r", 2, draw_costs.ranks, findings.ranks,
           "n = {tokens} decoded tokens of {sequences} sequences; {bars}."),
    Figure("layers", "Sensitivity by layer", 1, draw_costs.layers, findings.layers,
           "A random half of the experts is denied to each token, in one layer at a time. n = {tokens} decoded tokens "
           "of {sequences} sequences; {bars}."),
    Figure("distinct", "Distinct experts against batch size", 1, draw_routing.distinct, findings.distinct,
           "Batches of one token from each of so many sequences. n = {draws} batches a point; band: 95 % of them.",
           "n = {draws} batches, 95 % of them"),
    Figure("experts", "Protected experts", 2, draw_costs.experts, findings.experts,
           "One expert of one layer is denied to all decoded tokens; the {most} of most use in each layer were tried. "
           "n = {tokens} decoded tokens of {sequences} sequences; {bars}."),
)  # fmt: skip


def shown(whole: Line) -> list[Figure]:
    """Those that the record has measurements for: timing may have been left out."""
    return [figure for figure in FIGURES if figure.key != "time" or part(whole, "time")]


def picture(figure: Figure, whole: Line, path: Path) -> Path:
    """One of them as a PNG file."""
    plt = _pyplot()
    drawing, grid = plt.subplots(1, figure.panels, figsize=(8.4, 3.5), squeeze=False)
    figure.draw(list(grid[0]), whole)
    drawing.suptitle(_filled(figure.note, whole), fontsize=8, color="#666666", x=0.99, ha="right")
    save(drawing, whole["environment"], path)
    plt.close(drawing)
    return path


def board(whole: Line, path: Path) -> Path:
    """All of them in one PNG file, two side by side."""
    plt, figures = _pyplot(), shown(whole)
    rows = (len(figures) + 1) // 2
    drawing = plt.figure(figsize=(16.8, 3.6 * rows), layout="constrained")
    fields = drawing.subfigures(rows, 2, squeeze=False, hspace=0.03).flatten()
    for number, (field, figure) in enumerate(zip(fields, figures, strict=False), 1):
        field.suptitle(f"{number}. {figure.title} ({_filled(figure.note, whole)})", fontsize=11)
        figure.draw(list(field.subplots(1, figure.panels, squeeze=False)[0]), whole)
    drawing.savefig(path, dpi=80)
    plt.close(drawing)
    return path


def about(figure: Figure, whole: Line) -> str:
    """How it was measured: n, and what its bars are."""
    return _filled(figure.about, whole)


def _filled(text: str, whole: Line) -> str:
    (routing,), settings = part(whole, "routing"), whole["settings"]
    timing = (part(whole, "time") or [{"dtype": "", "implementation": "", "threads": 0}])[0]
    return text.format(
        rounds=settings["rounds"],
        draws=DRAWS,
        batch=settings["batch_size"],
        most=min(settings["num_experts"], routing["num_experts"]),
        tokens=f"{routing['num_tokens']:,}",
        sequences=routing["num_sequences"],
        steps=routing["num_steps"],
        bars=BOOTSTRAP,
        how=f"{timing['dtype']}, experts run as {timing['implementation']}, threads: {timing['threads']}",
    )


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
