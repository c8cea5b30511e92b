"""`lynx-moe doctor`: will it pay on this machine, with this model, and how much."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import BatchSizes, Layers, Out, Trust, found, sizes
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def doctor(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder, hub name, a testbed model, or a published shape of `bench` (random weights)."
        ),
    ],
    policy: Annotated[str, typer.Option(help="Spec string of the policy that you would serve with.")] = DEFAULT,
    beside: Annotated[
        str, typer.Option(help="Policies that take turns with it, between spaces; the first is the baseline.")
    ] = "vanilla priced:price=0.01 priced:price=0.1 priced:price=1",
    batch_sizes: BatchSizes = "1,2,4,8,16,32",
    seconds: Annotated[float, typer.Option(help="Time for all steps; loading the model comes on top.")] = 60.0,
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt: with more of them attention takes longer.")] = 16,
    layers: Layers = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compile as vLLM serves by default, on a GPU with CUDA graphs.")
    ] = False,
    trust_remote_code: Trust = False,
    out: Out = Path("out/doctor"),
) -> None:
    """Whether a policy pays here, at which batch sizes and how much; goes on with what --out holds."""
    from lynx_moe.lab.doctor import measure as measurement
    from lynx_moe.lab.doctor import show
    from lynx_moe.lab.doctor.findings import of_record
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.speed.shapes import SHAPES

    settings = measurement.Settings(
        model=model if model in SHAPES else found(model),
        policy=policy,
        beside=tuple(beside.split()),
        batch_sizes=tuple(sorted(sizes(batch_sizes))),
        seconds=seconds,
        prompt=prompt,
        layers=layers,
        compiled=compiled,
        trust_remote_code=trust_remote_code or None,
    )
    console, file = terminal.console(), out / "doctor.jsonl"
    whole = measurement.measure(settings, file)
    result = of_record(whole)
    tables.show(f"{model}: {result['policy']}", show.HEAD, show.table(result), console, show.CAPTION)
    console.print(show.formula(result), highlight=False)
    console.print(f"Verdict: {result['policy']} {result['verdict']}.", highlight=False)
    console.print(f"Findings: {show.save_findings(whole, file.with_suffix('.json'))}")
    console.print(f"Picture: {show.draw(whole, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")
