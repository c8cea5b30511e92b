"""`lynx-moe speculation`: what drafts do to a trained model's answers and loads."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import Baseline, BatchSizes, Model, Out, found, sizes
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def speculation(
    model: Model,
    drafters: Annotated[
        str,
        typer.Option(
            help="Between spaces: none, ngram, suffix, mtp, or a model that drafts (folder, or a testbed model's name)."
        ),
    ] = "none ngram draft",
    verify: Annotated[
        str, typer.Option(help="Ways of verifying between commas; draft needs a drafter with experts.")
    ] = ("exact,remap,draft"),
    policies: Baseline = f"vanilla {DEFAULT}",
    batch_sizes: BatchSizes = "1,4,16",
    drafts: Annotated[int, typer.Option(help="Tokens that are drafted for a request in every step, at most.")] = 3,
    items_per_task: Annotated[int, typer.Option(help="Held-out exercises of each task.")] = 40,
    shadow: Annotated[float, typer.Option(help="Share of the steps that are run twice, to measure the KL.")] = 0.25,
    out: Out = Path("out/speculation"),
) -> None:
    """What drafts do to answers and loads of a testbed model, through vLLM: no drafts, and each way of verifying; goes
    on with what --out holds."""
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.speculation import measure as measurement
    from lynx_moe.lab.speculation import show

    settings = measurement.Settings(
        model=found(model),
        drafters=tuple(drafters.split()),
        verify=tuple(verify.split(",")),
        policies=tuple(policies.split()),
        batch_sizes=tuple(sorted(sizes(batch_sizes))),
        num_drafts=drafts,
        items_per_task=items_per_task,
        shadow=shadow,
    )
    console, file = terminal.console(), out / "speculation.jsonl"
    whole = measurement.measure(settings, file, console.print)
    tables.show(f"{model}, {drafts} drafts", show.HEAD, show.rows(whole["results"]), console, show.CAPTION)
    console.print(f"Record: {file}")
