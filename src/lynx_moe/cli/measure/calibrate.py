"""`lynx-moe calibrate`: what calibrated policies need of a model."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import (
    Data,
    Dtype,
    MaxMemory,
    Model,
    Prefix,
    Seed,
    Sequences,
    Steps,
    Trust,
    found,
    kept_as,
)
from lynx_moe.lab.shared import terminal

app = typer.Typer()


@app.command()
def calibrate(
    model: Model,
    data: Data = "testbed",
    sequences: Sequences = 448,
    prefix: Prefix = 32,
    steps: Steps = 224,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="calibrate: what no test draws; all: the whole file.")] = "calibrate",
    similarity: Annotated[str, typer.Option(help="How alike two experts are: frobenius or cosine.")] = "frobenius",
    sensitivity: Annotated[
        int, typer.Option(help="So many documents are run backwards too: what a lost expert costs, layer by layer.")
    ] = 0,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.", callback=kept_as)] = Path(
        "out/calibration.safetensors"
    ),
) -> None:
    """Measures what sere, exfold and reap need of a model's experts, and priced can use: their knob data=FILE."""
    from lynx_moe.lab.calibrate import measure as measurement
    from lynx_moe.lab.fidelity import measure as fidelity
    from lynx_moe.lab.shared import tables

    settings = fidelity.Settings(
        model=found(model),
        data=data,
        batch_sizes=(2,),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
        split=split,
    )
    console = terminal.console()
    made = measurement.calibrate(settings, out, similarity, console.print, max_memory, sensitivity)
    if told := measurement.by_layer(made):
        rows = [(str(number), f"{value:.3g}") for number, value in told.items()]
        tables.show("What a lost expert costs", ("layer", "nats of KL per squared share"), rows, console, "")
    typer.echo(f"{len(made.layers)} layers, {made.provenance.num_tokens} tokens: {out}")
