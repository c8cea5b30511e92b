"""`lynx-moe bench | guard-cost`: time per output token, interleaved."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lynx_moe.cli.shared.options import (
    Baseline,
    BatchSizes,
    Data,
    ExpertsFolder,
    ExpertsResidency,
    ExpertsResident,
    Layers,
    Out,
    Policies,
    Shape,
    found,
    json_of,
    sizes,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds per batch size.")]


@app.command()
def bench(
    out: Out = Path("out/bench"),
    shape: Shape = "qwen3-30b",
    layers: Layers = None,
    policies: Baseline = f"vanilla {DEFAULT}",
    batch_sizes: BatchSizes = "1,2,4,8,16",
    rounds: Rounds = 7,
    drafts: Annotated[
        str,
        typer.Option(help="Requests verify drafts: between commas, the share of them accepted up to each depth."),
    ] = "",
    experts_resident: ExpertsResident = None,
    experts_folder: ExpertsFolder = None,
    experts_residency: ExpertsResidency = None,
    model: Annotated[
        str | None, typer.Option(help="A trained model in place of a shape: folder, hub name, or one of the testbed.")
    ] = None,
    data: Data = "testbed",
) -> None:
    """Time per output token of policies, interleaved in one engine, on a published layer shape with random weights, or
    on a trained model."""
    from lynx_moe.lab.demo.measure import apart, run_speed, run_verification
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.speed import disk, verification
    from lynx_moe.lab.speed.measure import check

    specs = [make_policy(text).spec for text in policies.split()]
    batches = sizes(batch_sizes)
    check(shape, batches)
    path = out / "speed.json"
    options: dict[str, Any] = {"shape": shape, "layers": layers, "policies": specs, "batch_sizes": batches}
    options["rounds"] = rounds
    if model is not None and layers is not None:
        raise ValueError(f"--layers is for published shapes; {model!r} has its own")
    if model is None and data != "testbed":
        raise ValueError(f"--data {data!r} is for a trained model: a shape has random weights; say which by --model")
    if drafts and model is not None:
        raise ValueError("--drafts are timed on a published shape; leave out --model")
    if drafts and experts_resident is not None:
        raise ValueError("--drafts and --experts-resident are measured apart; leave out either")
    if drafts:
        path, options["acceptance"] = out / "verification.json", verification.rates(drafts)
        result = apart(run_verification, path, options)
        rows = verification.table(result["summary"])
        tables.show(result["model"], verification.HEAD, rows, terminal.console(), verification.CAPTION)
        typer.echo(f"Record: {path}")
        return
    options |= {"experts_resident": experts_resident, "experts_folder": experts_folder}
    options |= {"experts_residency": experts_residency, "model": model and found(model), "data": data}
    result = apart(run_speed, path, options)
    rows = tables.speed_rows(result["summary"])
    if experts_resident is None:
        tables.show(result["model"], tables.SPEED_HEAD, rows, terminal.console())
    else:
        head = (*tables.SPEED_HEAD, *disk.HEAD)
        cells = [(*row, *disk.cells(line)) for row, line in zip(rows, result["summary"], strict=True)]
        tables.show(f"{result['model']}, {experts_resident} in memory", head, cells, terminal.console(), disk.CAPTION)
    typer.echo(f"Record: {path}")


@app.command("guard-cost")
def guard_cost(
    guard: Annotated[str, typer.Option(help="The guard's options, as JSON.")] = '{"max_mass_lost": 1, "max_error": 1}',
    shape: Shape = "qwen3-30b",
    layers: Layers = None,
    policies: Policies = DEFAULT,
    batch_sizes: BatchSizes = "16",
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of two runs, the guard on and off in turns of 8 steps.")
    ] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens of a run.")] = 257,
    out: Out = Path("out/guard"),
) -> None:
    """Throughput of policies with and without a quality guard, interleaved in one engine on a published layer shape."""
    from lynx_moe.lab.demo.measure import apart, run_guard_cost
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.speed.guard_cost import CAPTION, HEAD, table

    specs = [make_policy(text).spec for text in policies.split()]
    options = {"shape": shape, "layers": layers, "policies": specs, "batch_sizes": sizes(batch_sizes)}
    options |= {"rounds": rounds, "tokens": tokens, "guard": json_of(guard, "--guard")}
    result = apart(run_guard_cost, out / "guard.json", options)
    tables.show(result["model"], HEAD, table(result["summary"]), terminal.console(), CAPTION)
    typer.echo(f"Record: {out / 'guard.json'}")
