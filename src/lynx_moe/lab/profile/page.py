"""The page of a profile, and its pictures, from the saved record alone."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lynx_moe.lab.plots import save
from lynx_moe.lab.profile import draw_costs, draw_routing, findings
from lynx_moe.lab.profile.measure import missing, part
from lynx_moe.lab.profile.verdict import verdict

Line = dict[str, Any]
TEMPLATE = Path(__file__).with_name("page.html.jinja")
BOOTSTRAP = "bars: 95 % bootstrap over sequences"


class Figure(NamedTuple):
    """panels: axes side by side that `draw` fills; `found`: what came out, `about`: how it was measured, in words."""

    key: str
    title: str
    panels: int
    draw: Callable[[Sequence[Any], Line], None]
    found: Callable[[Line], str]
    about: str


FIGURES = (
    Figure("time", "Step time against distinct experts", 2, draw_routing.step_time, findings.time,
           "The routing is forced to load a given number of experts. n = {rounds} interleaved rounds a point; points: "
           "medians, bars: quartiles, dashes: least squares."),
    Figure("use", "Expert use: data set against batches", 1, draw_routing.use, findings.use,
           "n = {tokens} decoded tokens of {sequences} sequences, {steps} batches of {batch}; [95 % bootstrap over "
           "sequences, over batches]; the spread is the root mean square distance from the even share."),
    Figure("phases", "The same reassignment in prefill and in decode", 1, draw_costs.phases, findings.phases,
           "Exact and changed model are compared on the same n = {tokens} tokens after the prefix ({sequences} "
           "sequences); {bars}."),
    Figure("confidence", "Sensitivity by router confidence", 2, draw_costs.confidence, findings.confidence,
           "n = {tokens} decoded tokens in quarters; every step reads the exact model's cache, so each token shows its "
           "own damage; {bars}."),
    Figure("ranks", "Ranks: denied one by one, and kept up to r", 2, draw_costs.ranks, findings.ranks,
           "n = {tokens} decoded tokens of {sequences} sequences; {bars}."),
    Figure("layers", "Sensitivity by layer", 1, draw_costs.layers, findings.layers,
           "A random half of the experts is denied to each token, in one layer at a time. n = {tokens} decoded tokens "
           "of {sequences} sequences; {bars}."),
    Figure("distinct", "Distinct experts against batch size", 1, draw_routing.distinct, findings.distinct,
           "Batches of one token from each of so many sequences. n = 300 batches a point; band: 95 % of them."),
    Figure("experts", "Protected experts", 2, draw_costs.experts, findings.experts,
           "One expert of one layer is denied to all decoded tokens; the {most} of most use in each layer were tried. "
           "n = {tokens} decoded tokens of {sequences} sequences; {bars}."),
)  # fmt: skip


def draw(whole: Line, path: Path) -> Path:
    """Writes the page to `path`, its pictures beside it as `<stem>-<key>.png`, and returns `path`.

    Raises ValueError for a record that is not whole, or whose lines lack something.
    """
    import jinja2

    if lacking := missing(whole):
        raise ValueError(
            f"the record lacks {', '.join(lacking)}; run the same `lynx-moe profile` again, it goes on there"
        )
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text())
    try:
        figures = [_figure(figure, whole, path) for figure in FIGURES if figure.key != "time" or part(whole, "time")]
        html = template.render(
            name=Path(whole["settings"]["model"]).name,
            settings=whole["settings"],
            environment=whole["environment"],
            routing=part(whole, "routing")[0],
            figures=figures,
            check=part(whole, "check"),
            mnats=findings.mnats,
            verdict=verdict(whole),
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the record's lines are not those of a profile: {type(error).__name__}: {error}") from None
    path.write_text(html)
    return path


def _figure(figure: Figure, whole: Line, path: Path) -> Line:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    drawing, grid = plt.subplots(1, figure.panels, figsize=(8.4, 3.5), squeeze=False)
    figure.draw(list(grid[0]), whole)
    picture = path.with_name(f"{path.stem}-{figure.key}.png")
    save(drawing, whole["environment"], picture)
    plt.close(drawing)
    routing, settings = part(whole, "routing")[0], whole["settings"]
    numbers = {
        "rounds": settings["rounds"],
        "batch": settings["batch_size"],
        "most": min(settings["num_experts"], routing["num_experts"]),
        "tokens": f"{routing['num_tokens']:,}",
        "sequences": routing["num_sequences"],
        "steps": routing["num_steps"],
        "bars": BOOTSTRAP,
    }
    return {
        "title": figure.title,
        "image": base64.b64encode(picture.read_bytes()).decode(),
        "found": figure.found(whole),
        "about": figure.about.format(**numbers),
    }
