"""`lynx-moe table | plot`: saved measurements seen again."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("table")
def markdown_table(
    saved: Annotated[
        list[Path],
        typer.Argument(
            help="The .jsonl files of `lynx-moe eval`, `fidelity`, `speculation`, `bakeoff`, `load`; a folder of pairs."
        ),
    ],
    at_equal_experts: Annotated[
        bool,
        typer.Option("--at-equal-experts", help="Of fidelity: policies with prices at the experts that others keep."),
    ] = False,
) -> None:
    """Prints saved records as Markdown, without running anything."""
    from lynx_moe.lab.bakeoff import page
    from lynx_moe.lab.fidelity import equal, pairs, tiers
    from lynx_moe.lab.load import show as load
    from lynx_moe.lab.shared import lines, tables
    from lynx_moe.lab.speculation import show as speculation

    for file in saved:
        if file.is_dir():
            typer.echo(pairs.page(file))
            continue
        if at_equal_experts:
            typer.echo(equal.page(lines.load(file, "fidelity")["results"]))
            continue
        pages = {**tables.MARKDOWN, tiers.KIND: tiers.page, speculation.KIND: speculation.page}
        whole = {"bakeoff": page.markdown, load.KIND: load.page}
        record = lines.load(file, *pages, *whole)
        typer.echo(f"### {Path(record['settings']['model']).name}\n")
        kind = record["kind"]
        typer.echo(whole[kind](record) if kind in whole else pages[kind](record["results"]))


@app.command()
def plot(
    saved: Annotated[Path, typer.Argument(help="A demo.json, the .jsonl of a measurement, a folder of pairs.")],
    out: Annotated[Path | None, typer.Option(help="The picture or page (default: beside the record).")] = None,
) -> None:
    """Draws a saved record again, without running anything."""
    from lynx_moe.lab.bakeoff import page as bakeoff
    from lynx_moe.lab.doctor import show as doctor
    from lynx_moe.lab.evaluation import plot as plot_evaluation
    from lynx_moe.lab.fidelity import plot as plot_fidelity
    from lynx_moe.lab.fidelity import plot_pairs
    from lynx_moe.lab.load import show as load
    from lynx_moe.lab.load import timeline
    from lynx_moe.lab.profile.show import page as profile
    from lynx_moe.lab.shared import lines, plots, record

    if saved.is_dir():
        typer.echo(plot_pairs.draw(saved, out or saved / "pairs.png"))
        return
    if saved.suffix == ".jsonl":
        pictures = {
            "evaluation": plot_evaluation.draw,
            "fidelity": plot_fidelity.draw,
            "doctor": doctor.draw,
            load.KIND: load.draw,
            timeline.KIND: timeline.draw,
        }
        pages = {"bakeoff": bakeoff.draw, "profile": profile.draw}
        lined = lines.load(saved, *pictures, *pages)
        suffix = ".html" if lined["kind"] in pages else ".png"
        typer.echo((pictures | pages)[lined["kind"]](lined, out or saved.with_suffix(suffix)))
        return
    loaded = record.load(saved)
    if loaded["kind"] != "demo":
        raise ValueError(f"{saved} is a record of kind {loaded['kind']!r}; only 'demo' records have a picture")
    typer.echo(plots.demo(loaded, out or saved.with_suffix(".png")))
