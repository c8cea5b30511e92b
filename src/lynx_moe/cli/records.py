"""`lynx-moe record | replay | calibrate | table | plot`: router logits, calibration, saved measurements seen again."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lynx_moe.cli.options import Data, Dtype, Model, Policies, Prefix, Seed, Sequences, Steps, found
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
    policies: Policies = f"vanilla {DEFAULT}",
    steps: Annotated[int | None, typer.Option(help="Only so many steps, evenly spaced (default: all).")] = None,
    ranks: Annotated[int, typer.Option(help="Ranks of expert parallelism, for the fullest rank's experts.")] = 1,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the rows of the table.")] = None,
) -> None:
    """What policies would have decided on recorded router logits, without the model."""
    from lynx_moe.lab import recording, tables
    from lynx_moe.lab.replay import replay as decide

    rows = decide(recording.load(recorded), policies.split(), steps, ranks)
    head, shown = tables.replay_table(rows, ranks)
    tables.show(str(recorded), head, shown, Console())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in rows))


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
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option("--out", "-o", help="The file.")] = Path("out/calibration.safetensors"),
) -> None:
    """Measures what sere, exfold and reap need of a model's experts, and priced can use: their knob data=FILE."""
    from lynx_moe.lab import calibrate as measurement
    from lynx_moe.lab import fidelity

    settings = fidelity.Settings(
        model=found(model),
        data=data,
        batch_sizes=(2,),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        split=split,
    )
    with Console().status("starting") as status:
        made = measurement.calibrate(settings, out, similarity, advance=status.update)
    typer.echo(f"{len(made.layers)} layers, {made.provenance.num_tokens} tokens: {out}")


@app.command("table")
def markdown_table(
    saved: Annotated[
        list[Path],
        typer.Argument(help="The .jsonl files of `lynx-moe eval`, `fidelity`, `bakeoff`; a folder of pairs."),
    ],
) -> None:
    """Prints saved records as Markdown, without running anything."""
    from lynx_moe.lab import lines, pairs, tables
    from lynx_moe.lab.bakeoff import page

    for file in saved:
        if file.is_dir():
            typer.echo(pairs.page(file))
            continue
        record = lines.load(file, *tables.MARKDOWN, "bakeoff")
        typer.echo(f"### {Path(record['settings']['model']).name}\n")
        bakeoff = record["kind"] == "bakeoff"
        typer.echo(page.markdown(record) if bakeoff else tables.MARKDOWN[record["kind"]](record["results"]))


@app.command()
def plot(
    saved: Annotated[Path, typer.Argument(help="A demo.json, the .jsonl of a measurement, a folder of pairs.")],
    out: Annotated[Path | None, typer.Option(help="The picture or page (default: beside the record).")] = None,
) -> None:
    """Draws a saved record again, without running anything."""
    from lynx_moe.lab import lines, plot_evaluation, plot_fidelity, plot_pairs, plots, record
    from lynx_moe.lab.bakeoff import page as bakeoff
    from lynx_moe.lab.profile import page as profile

    if saved.is_dir():
        typer.echo(plot_pairs.draw(saved, out or saved / "pairs.png"))
        return
    if saved.suffix == ".jsonl":
        pictures = {"evaluation": plot_evaluation.draw, "fidelity": plot_fidelity.draw}
        pages = {"bakeoff": bakeoff.draw, "profile": profile.draw}
        lined = lines.load(saved, *pictures, *pages)
        suffix = ".html" if lined["kind"] in pages else ".png"
        typer.echo((pictures | pages)[lined["kind"]](lined, out or saved.with_suffix(suffix)))
        return
    loaded = record.load(saved)
    if loaded["kind"] != "demo":
        raise ValueError(f"{saved} is a record of kind {loaded['kind']!r}; only 'demo' records have a picture")
    typer.echo(plots.demo(loaded, out or saved.with_suffix(".png")))
