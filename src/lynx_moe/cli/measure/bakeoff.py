"""`lynx-moe bakeoff`: every policy over its knobs, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import (
    BatchSizes,
    Data,
    Dtype,
    MaxMemory,
    Model,
    Out,
    Prefix,
    Seed,
    Steps,
    Trust,
    found,
    sizes,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def bakeoff(
    model: Model,
    policies: Annotated[
        str,
        typer.Option(
            help="Names between spaces (default: all that have a grid); with knobs that stay: priced:slope=1."
        ),
    ] = "",
    calibration: Annotated[
        Path | None, typer.Option(help="A file of `lynx-moe calibrate`; sere, exfold and reap need it.")
    ] = None,
    batch_sizes: BatchSizes = "4,16,64",
    mixes: Annotated[
        str, typer.Option(help="one: batches of one group; mixed: of all; draft: of all, and requests verify drafts.")
    ] = ("one,mixed"),
    drafts: Annotated[
        str, typer.Option(help="For draft: between commas, the share of drafts accepted up to each depth.")
    ] = "",
    norms: Annotated[str, typer.Option(help="model: each policy's own weights; mass: without what is lost.")] = (
        "model,mass"
    ),
    data: Data = "testbed",
    sequences: Annotated[int, typer.Option(help="Documents of each test cell; tuning has half as many.")] = 112,
    prefix: Prefix = 32,
    steps: Steps = 32,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    against: Annotated[str, typer.Option(help="The policy to compare with the best published one.")] = DEFAULT,
    exact: Annotated[int, typer.Option(help="Also `lynx-moe eval` of the best settings, so many items a task.")] = 0,
    out: Out = Path("out/bakeoff"),
) -> None:
    """All policies over their knobs: tuned on one part of the data, compared on another; goes on with what --out
    holds."""
    from lynx_moe.lab.bakeoff import findings, page
    from lynx_moe.lab.bakeoff.exact import exact_match
    from lynx_moe.lab.bakeoff.measure import Settings, measure
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.speed.verification import rates

    settings = Settings(
        model=found(model),
        data=data,
        batch_sizes=tuple(sizes(batch_sizes)),
        mixes=tuple(mixes.split(",")),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
        norms=tuple(norms.split(",")),
        calibration=None if calibration is None else str(calibration),
        drafts=tuple(rates(drafts)) if drafts else None,
    )
    console, file = terminal.console(), out / "bakeoff.jsonl"
    whole = measure(settings, file, policies.split(), console.print, max_memory)
    if exact:
        exact_match(whole, out / "eval.jsonl", exact)
    for title, head, rows in (*findings.comparisons(whole, against), findings.cost_table(whole)):
        tables.show(title, head, rows, console)
    console.print(f"Page: {page.draw(whole, file.with_suffix('.html'))}\nRecord: {file}")
