"""`lynx-moe fidelity`: how far policies move the next-token distribution."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lynx_moe.cli.shared.options import (
    BatchSizes,
    Data,
    Dtype,
    MaxMemory,
    Model,
    Out,
    Policies,
    Seed,
    Sequences,
    Split,
    Steps,
    Trust,
    found,
    sizes,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def fidelity(
    model: Model,
    policies: Policies = DEFAULT,
    batch_sizes: BatchSizes = "2,4,8,16,32,64",
    data: Data = "testbed",
    mixes: Annotated[str, typer.Option(help="one: batches of one group; mixed: of all groups.")] = "one,mixed",
    caches: Annotated[
        str, typer.Option(help="own: policies read what they wrote; exact: what the model wrote.")
    ] = "own",
    tiers: Annotated[
        str,
        typer.Option(help='Prices and "exact" between spaces: rows of all of them in one batch, and among their like.'),
    ] = "",
    ranks: Annotated[
        str, typer.Option(help="Ranks that the experts live on: 2,4,8; tells what the fullest loads, too.")
    ] = "",
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="What decodes; vllm: as it serves, quantised or parallel.")
    ] = "transformers",
    model_args: Annotated[str, typer.Option(help="name=value,... or JSON for vllm.LLM.")] = "",
    sequences: Sequences = 224,
    prefix: Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")] = 32,
    steps: Steps = 32,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    split: Split = "all",
    out: Out = Path("out/fidelity"),
) -> None:
    """How far policies move the next-token distribution from the model's own; goes on with what --out holds."""
    from lynx_moe.lab.evaluation import arguments
    from lynx_moe.lab.fidelity import measure as measurement
    from lynx_moe.lab.fidelity import plot as plot_fidelity
    from lynx_moe.lab.fidelity import ranks as ranked
    from lynx_moe.lab.fidelity import served
    from lynx_moe.lab.fidelity import tiers as tiered
    from lynx_moe.lab.shared import tables

    settings = measurement.Settings(
        model=found(model),
        data=data,
        batch_sizes=tuple(sizes(batch_sizes)),
        mixes=tuple(mixes.split(",")),
        caches=tuple(caches.split(",")),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
        split=split,
    )
    console, on_vllm = terminal.console(), engine == "vllm"
    if tiers and ranks:
        raise ValueError("--tiers and --ranks are two measurements: give one of them")
    if (tiers and on_vllm) or (model_args and not on_vllm):
        raise ValueError("--tiers is measured on transformers alone, and --model-args goes to --engine vllm alone")
    if tiers:
        file = out / "tiers.jsonl"
        result = tiered.measure(settings, policies.split(), tiered.tiers_of(tiers), file, console.print, max_memory)
        for title, lines in tables.by_cache(result["results"]).items():
            tables.show(f"{model}: {title}", tiered.HEAD, tiered.rows(lines), console)
        console.print(f"Record: {file}")
        return
    if ranks:
        if on_vllm:
            raise ValueError(
                "--ranks deals experts out on transformers; --engine vllm has them where --model-args says"
            )
        for number in sizes(ranks, "--ranks"):
            file = out / f"{number}-ranks.jsonl"
            result = ranked.measure(settings, policies.split(), number, file, console.print, max_memory)
            for title, lines in tables.by_cache(result["results"]).items():
                of_ranks = f"{model} on {number} ranks: {title}"
                tables.show(of_ranks, tables.FIDELITY_HEAD, tables.fidelity_rows(lines), console)
            console.print(f"Record: {file}")
        return
    file = out / "fidelity.jsonl"
    if on_vllm:
        result = served.measure(
            settings, policies.split(), file, max_gib=max_memory, engine_args=arguments.read(model_args, served.GIVEN)
        )
    else:
        result = measurement.measure(settings, policies.split(), file, console.print, max_memory)
    for title, lines in tables.by_cache(result["results"]).items():
        tables.show(f"{model}: {title}", tables.FIDELITY_HEAD, tables.fidelity_rows(lines), console)
    console.print(f"Picture: {plot_fidelity.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")
