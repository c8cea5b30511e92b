"""`lynx-moe record | replay | table | plot`: router logits, and saved measurements, seen again."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lynx_moe.cli.options import Data, Dtype, Model, Policies, Seed, Sequences, Steps, found
from lynx_moe.policies import make_policy

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
    max_mib: Annotated[float, typer.Option(help="Steps beyond this size are left out.")] = 64,
    out: Annotated[Path, typer.Option(help="The recording.")] = Path("out/recording.safetensors"),
) -> None:
    """Records a model's router logits while it decodes, for `lynx-moe replay`."""
    from lynx_moe.lab import capture, fidelity, recording

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
    )
    made = recording.load(capture.capture(engine, settings, make_policy(policy).spec, max_mib, out))
    left = f", {made.facts['dropped_steps']} more left out" if made.facts["dropped_steps"] else ""
    typer.echo(
        f"{len(made.rows)} steps of {len(made.layers)} layers{left}: {out}, {out.stat().st_size / 2**20:.1f} MiB"
    )


@app.command()
def replay(
    recorded: Annotated[Path, typer.Argument(help="A file of `lynx-moe record`.")],
    policies: Policies = "vanilla lynx",
    steps: Annotated[int | None, typer.Option(help="Only so many steps, evenly spaced (default: all).")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the rows of the table.")] = None,
) -> None:
    """What policies would have decided on recorded router logits, without the model."""
    from lynx_moe.lab import recording, tables
    from lynx_moe.lab.replay import replay as decide

    rows = decide(recording.load(recorded), policies.split(), steps)
    tables.show(str(recorded), tables.REPLAY_HEAD, tables.replay_rows(rows), Console())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in rows))


@app.command("table")
def markdown_table(
    saved: Annotated[list[Path], typer.Argument(help="The .jsonl files of `lynx-moe eval` and `fidelity`.")],
) -> None:
    """Prints saved records as Markdown, without running anything."""
    from lynx_moe.lab import lines, tables

    for file in saved:
        record = lines.load(file, *tables.MARKDOWN)
        typer.echo(f"### {Path(record['settings']['model']).name}\n")
        typer.echo(tables.MARKDOWN[record["kind"]](record["results"]))


@app.command()
def plot(
    saved: Annotated[Path, typer.Argument(help="A demo.json, or the .jsonl of `eval`, `fidelity` or `profile`.")],
    out: Annotated[Path | None, typer.Option(help="The picture or page (default: beside the record).")] = None,
) -> None:
    """Draws a saved record again, without running anything."""
    from lynx_moe.lab import lines, plot_evaluation, plot_fidelity, plots, record
    from lynx_moe.lab.profile import page

    if saved.suffix == ".jsonl":
        pictures = {"evaluation": plot_evaluation.draw, "fidelity": plot_fidelity.draw, "profile": page.draw}
        lined = lines.load(saved, *pictures)
        suffix = ".html" if lined["kind"] == "profile" else ".png"
        typer.echo(pictures[lined["kind"]](lined, out or saved.with_suffix(suffix)))
        return
    loaded = record.load(saved)
    if loaded["kind"] != "demo":
        raise ValueError(f"{saved} is a record of kind {loaded['kind']!r}; only 'demo' records have a picture")
    typer.echo(plots.demo(loaded, out or saved.with_suffix(".png")))
