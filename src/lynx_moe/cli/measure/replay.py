"""`lynx-moe record | replay`: router logits kept, and decided on without the model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lynx_moe.cli.shared.options import (
    Data,
    Dtype,
    Model,
    Policies,
    Seed,
    Sequences,
    Steps,
    Trust,
    found,
    kept_as,
    sizes,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()


@app.command()
def record(
    model: Model,
    engine: Annotated[str, typer.Option(help="vllm: its own batches; transformers: lockstep.")] = "vllm",
    policy: Annotated[str, typer.Option(help="What decodes meanwhile.")] = "vanilla",
    batch_size: Annotated[int, typer.Option(help="Sequences that decode together.")] = 16,
    data: Data = "testbed",
    sequences: Sequences = 224,
    prefix: Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")] = 32,
    steps: Steps = 32,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    trust_remote_code: Trust = False,
    max_mib: Annotated[float, typer.Option(help="Steps beyond this size are left out.")] = 64,
    out: Annotated[Path, typer.Option(help="The recording.", callback=kept_as)] = Path("out/recording.safetensors"),
) -> None:
    """Records a model's router logits while it decodes, for `lynx-moe replay`."""
    from lynx_moe.lab.fidelity import measure as fidelity
    from lynx_moe.lab.replay import capture, recording

    capture.check(engine, batch_size, max_mib)
    settings = fidelity.Settings(
        model=found(model),
        data=data,
        batch_sizes=(batch_size,),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
    )
    made = recording.load(capture.capture(engine, settings, make_policy(policy).spec, max_mib, out))
    left = f", {made.facts['dropped_steps']} more left out" if made.facts["dropped_steps"] else ""
    typer.echo(
        f"{len(made.rows)} steps of {len(made.layers)} layers{left}: {out}, {out.stat().st_size / 2**20:.1f} MiB"
    )


@app.command()
def replay(
    recorded: Annotated[Path, typer.Argument(help="A file of `lynx-moe record`, or a trace of routes (.npz).")],
    policies: Policies = f"vanilla {DEFAULT}",
    steps: Annotated[
        int | None,
        typer.Option(help="Only so many steps, evenly spaced (default: all). Routes: steps of a batch (16)."),
    ] = None,
    ranks: Annotated[int, typer.Option(help="Ranks of expert parallelism, for the fullest rank's experts.")] = 1,
    redundant_experts: Annotated[
        int | None,
        typer.Option(help="Copies of popular experts on those ranks, as EPLB puts them (0: moved about only)."),
    ] = None,
    replicas: Annotated[int, typer.Option(help="Data-parallel replicas that share out the rows and decide alone.")] = 1,
    votes: Annotated[
        bool, typer.Option("--votes", help="Each replica knows which experts the others kept in the step before.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option(help="Experts that a layer's cache holds (on each rank), for the loads into it.")
    ] = None,
    aware: Annotated[
        bool,
        typer.Option("--aware", help="Policies know what that cache holds: `priced` asks less for it."),
    ] = False,
    batch_sizes: Annotated[str | None, typer.Option(help="Routes: sequences that decode together (4,16,64).")] = None,
    mixes: Annotated[
        str | None, typer.Option(help="Routes: one, mixed or both between commas; one keeps a batch to one task.")
    ] = None,
    batches: Annotated[int | None, typer.Option(help="Routes: batches to draw of each size (24).")] = None,
    seed: Annotated[int | None, typer.Option(help="Routes: draws who shares a batch (0).")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the rows of the table.", callback=kept_as)] = None,
) -> None:
    """What policies would have decided on recorded router logits or published routes, without the model."""
    from lynx_moe.lab.replay import recording
    from lynx_moe.lab.replay.measure import Setting
    from lynx_moe.lab.replay.measure import replay as decide
    from lynx_moe.lab.replay.over_routes import Draw, replay_routes
    from lynx_moe.lab.shared import tables

    asked: dict[str, Any] = {"batches": batches, "seed": seed}
    asked |= {"batch_sizes": None if batch_sizes is None else tuple(sizes(batch_sizes))}
    asked |= {"mixes": None if mixes is None else tuple(mixes.split(","))}
    given = {name: value for name, value in asked.items() if value is not None}
    shown_by: dict[str, Any] = {"ranks": ranks, "redundant": redundant_experts, "replicas": replicas, "slots": slots}
    parallel: dict[str, Any] = {**shown_by, "votes": votes, "aware": aware}
    if recorded.suffix == ".npz":
        given |= {} if steps is None else {"steps": steps}
        rows = replay_routes(recorded, policies.split(), Draw(**given), Setting(**parallel))
    elif given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: for traces of routes (.npz); in {recorded}, a recording, batches are as they were")
    else:
        rows = decide(recording.load(recorded), policies.split(), Setting(steps=steps, **parallel))
    head, shown = tables.replay_table(rows, **shown_by)
    tables.show(str(recorded), head, shown, terminal.console())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")
