"""`lynx-moe profile`: what one model tolerates, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import Data, Dtype, Model, Out, Prefix, Seed, Sequences, Steps, Trust, found
from lynx_moe.lab.shared import terminal

app = typer.Typer()


@app.command()
def profile(
    model: Model,
    data: Data = "testbed",
    batch_size: Annotated[int, typer.Option(help="Sequences that decode together, 2 or more.")] = 16,
    sequences: Sequences = 112,
    prefix: Prefix = 32,
    steps: Steps = 32,
    experts: Annotated[int, typer.Option(help="Experts of each layer to deny one by one, the most used first.")] = 16,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing; 0 leaves it out.")] = 9,
    tolerance: Annotated[float, typer.Option(help="Nats a token that the suggested policy may cost.")] = 0.01,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    out: Out = Path("out/profile"),
) -> None:
    """One page on what this model tolerates, and the policy it suggests; goes on with what --out holds."""
    from lynx_moe.lab.profile.measure import measure
    from lynx_moe.lab.profile.measures.settings import Settings
    from lynx_moe.lab.profile.show import page
    from lynx_moe.lab.profile.show.verdict import command, verdict

    settings = Settings(
        model=found(model),
        data=data,
        batch_size=batch_size,
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        num_experts=experts,
        rounds=rounds,
        tolerance=tolerance,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
    )
    console, file = terminal.console(), out / "profile.jsonl"
    whole = measure(settings, file, advance=console.print)
    shown = page.draw(whole, file.with_suffix(".html"))
    for sentence in verdict(whole):
        console.print(sentence, highlight=False, markup=False)
    if line := command(whole):
        console.print(f"  {line}", highlight=False)
    console.print(f"Page: {shown}\nRecord: {file}")
