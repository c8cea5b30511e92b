"""`lynx-moe record | replay`: router logits kept, and decided on without the model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
)
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
    out: Annotated[Path, typer.Option(help="The recording.")] = Path("out/recording.safetensors"),
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
    recorded: Annotated[Path, typer.Argument(help="A file of `lynx-moe record`.")],
    policies: Policies = f"vanilla {DEFAULT}",
    steps: Annotated[int | None, typer.Option(help="Only so many steps, evenly spaced (default: all).")] = None,
    ranks: Annotated[int, typer.Option(help="Ranks of expert parallelism, for the fullest rank's experts.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the rows of the table.")] = None,
) -> None:
    """What policies would have decided on recorded router logits, without the model."""
    from lynx_moe.lab.replay import recording
    from lynx_moe.lab.replay.measure import replay as decide
    from lynx_moe.lab.shared import tables

    rows = decide(recording.load(recorded), policies.split(), steps, ranks)
    head, shown = tables.replay_table(rows, ranks)
    tables.show(str(recorded), head, shown, Console())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in rows), encoding="utf-8")
