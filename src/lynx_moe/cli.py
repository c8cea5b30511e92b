"""The command line: `lynx-moe policies | serve | demo | eval | bench | plot | testbed`."""

import json
import sys
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from lynx_moe.policies import POLICIES, SHARED, Policy, knobs, make_policy
from lynx_moe.testbed.cli import app as testbed

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(testbed, name="testbed")
Out = Annotated[Path, typer.Option(help="Folder for records and pictures.")]
Shape = Annotated[str, typer.Option(help="Published layer shape to time: qwen3-30b or olmoe-1b-7b.")]
Layers = Annotated[int | None, typer.Option(min=1, help="Layers of it (default: what fits in 3 GB).")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds per batch size.")]


@app.command()
def policies() -> None:
    """Every policy, its knobs with their defaults, and where it was published."""
    console, table = Console(), Table(box=box.SIMPLE_HEAD)
    for column in ("policy", "knobs", "what stays", "source"):
        table.add_column(column, no_wrap=column in ("policy", "knobs"))
    for name, policy in POLICIES.items():
        own = {knob: about for knob, about in knobs(policy).items() if knob not in SHARED}
        lines = [f"{knob}: {kind.__name__}{_default(policy, knob, value)}" for knob, (kind, value) in own.items()]
        table.add_row(name, "\n".join(lines) or "-", policy.summary, policy.source)
    console.print(table)
    for knob, meaning in SHARED.items():
        others = [name for name, policy in POLICIES.items() if knob not in knobs(policy)]
        takers = [name for name in POLICIES if name not in others]
        who = f"all but {', '.join(others)}" if len(others) < len(takers) else ", ".join(takers)
        console.print(f"{knob} ({who}): {meaning}", highlight=False)


def _default(policy: type[Policy], knob: str, value: Any) -> str:
    if knob in policy.one_of:
        return "" if knob == policy.one_of[-1] else ", or"
    return "" if value is MISSING else f" = {'auto' if value is None else str(value).lower()}"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model folder or name, as for `vllm serve`.")],
    policy: Annotated[str, typer.Option(help="Spec string, such as lynx:alpha=3,beta=2.")] = "lynx",
) -> None:
    """`vllm serve MODEL` with a policy on; all of vllm serve's own flags pass through."""
    from lynx_moe.serve import serve as run

    run(model, make_policy(policy).spec, context.args)


@app.command()
def demo(
    out: Out = Path("out/demo"),
    model: Annotated[str, typer.Option(help="Trained testbed model: a name or a folder.")] = "qwen3-moe",
    shape: Shape = "qwen3-30b",
    layers: Layers = None,
    items_per_task: Annotated[int, typer.Option(min=1, help="Held-out items of each task.")] = 40,
    rounds: Rounds = 5,
) -> None:
    """Lynx off and on: quality on a trained model, speed on a published layer shape. Under six minutes on two cores."""
    from lynx_moe.lab.demo import demo as run
    from lynx_moe.lab.speed import check
    from lynx_moe.testbed import path

    check(shape, [1])
    folder = Path(model) if Path(model).is_dir() else path(model)
    run(model=folder, out=out, shape=shape, layers=layers, items_per_task=items_per_task, rounds=rounds)


@app.command()
def bench(
    out: Out = Path("out/bench"),
    shape: Shape = "qwen3-30b",
    layers: Layers = None,
    policies: Annotated[str, typer.Option(help="Spec strings between spaces; the first is the baseline.")] = (
        "vanilla lynx:alpha=3,beta=2 oea:k0=3"
    ),
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes between commas.")] = "1,2,4,8,16",
    rounds: Rounds = 7,
) -> None:
    """Time per output token of policies, interleaved in one engine, on a published layer shape with random weights."""
    from lynx_moe.lab import tables
    from lynx_moe.lab.demo import apart, run_speed
    from lynx_moe.lab.speed import check

    specs = [make_policy(text).spec for text in policies.split()]
    sizes = _sizes(batch_sizes)
    check(shape, sizes)
    path = out / "speed.json"
    options = {"shape": shape, "layers": layers, "policies": specs, "batch_sizes": sizes, "rounds": rounds}
    result = apart(run_speed, path, options)
    tables.show(result["model"], tables.SPEED_HEAD, tables.speed_rows(result["summary"]), Console())
    typer.echo(f"Record: {path}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, hub name, or the name of a testbed model.")],
    policies: Annotated[str, typer.Option(help="Spec strings between spaces; the first is the baseline.")] = (
        "vanilla lynx"
    ),
    tasks: Annotated[str, typer.Option(help="lm-evaluation-harness tasks or groups between commas.")] = "lynx_testbed",
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task (default: all).")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests that run at once.")] = 16,
    mix: Annotated[str, typer.Option(help="heterogeneous: tasks share batches; homogeneous: task after task.")] = (
        "heterogeneous"
    ),
    engine: Annotated[Literal["vllm"], typer.Option(help="What generates.")] = "vllm",
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples per question (default: the task's).")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts through the model's chat template.")] = False,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run code that the model writes.")] = False,
    model_args: Annotated[str, typer.Option(help="name=value,... for lm-eval's vLLM class and vLLM.")] = "",
    control: Annotated[
        bool, typer.Option("--control", help="Also as many random experts as the second policy loads.")
    ] = False,
    out: Out = Path("out/eval"),
) -> None:
    """Any lm-evaluation-harness task under several policies, on the same items; goes on with what --out holds."""
    from lynx_moe.lab import evaluation, plot_evaluation, scores, tables
    from lynx_moe.serve import check_model

    specs = [make_policy(text).spec for text in policies.split()]
    model = _found(model)
    for spec in specs:
        check_model(model, spec)
    settings = evaluation.Settings(
        model=model,
        tasks=tuple(tasks.split(",")),
        limit=limit,
        concurrency=concurrency,
        mix=mix,
        num_fewshot=num_fewshot,
        chat=chat,
        model_args=model_args,
        engine=engine,
    )
    console, file = Console(), out / "eval.jsonl"
    result = evaluation.apart(settings, specs, file, allow_code=allow_code)
    if control:
        specs.append(scores.control(result["results"]))
        result = evaluation.apart(settings, specs, file, allow_code=allow_code)
    tables.show(model, *tables.task_table(result["results"]), console)
    if overall := scores.overall(result["results"]):
        head = ("policy", f"mean of {overall[0]['num_tasks']} tasks, %", *tables.QUALITY_HEAD[2:])
        tables.show(f"n = {overall[0]['n']}", head, tables.quality_rows(overall, "value"), console)
        console.print(f"Picture: {plot_evaluation.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")


@app.command()
def fidelity(
    model: Annotated[str, typer.Argument(help="Model folder, hub name, or the name of a testbed model.")],
    policies: Annotated[str, typer.Option(help="Spec strings between spaces.")] = "lynx",
    batch_sizes: Annotated[
        str, typer.Option(help="Sequences that decode together, between commas.")
    ] = "2,4,8,16,32,64",
    data: Annotated[
        str, typer.Option(help="testbed, or a file: .jsonl of text or prompt and continuation, or text.")
    ] = ("testbed"),
    mixes: Annotated[str, typer.Option(help="one: batches of one group; mixed: of all groups.")] = "one,mixed",
    caches: Annotated[
        str, typer.Option(help="own: policies read what they wrote; exact: what the model wrote.")
    ] = "own",
    sequences: Annotated[int, typer.Option(help="Documents to draw batches from.")] = 224,
    prefix: Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")] = 32,
    steps: Annotated[int, typer.Option(help="Tokens of running text that are decoded.")] = 32,
    seed: Annotated[int, typer.Option(help="Draws the exercises and who shares a batch.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ...; auto: as the weights were saved.")] = "auto",
    out: Out = Path("out/fidelity"),
) -> None:
    """How far policies move the next-token distribution from the model's own; goes on with what --out holds."""
    from lynx_moe.lab import fidelity as measurement
    from lynx_moe.lab import plot_fidelity, tables

    settings = measurement.Settings(
        model=_found(model),
        data=data,
        batch_sizes=tuple(_sizes(batch_sizes)),
        mixes=tuple(mixes.split(",")),
        caches=tuple(caches.split(",")),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
    )
    console, file = Console(), out / "fidelity.jsonl"
    result = measurement.measure(settings, policies.split(), file, advance=console.print)
    for title, lines in tables.by_cache(result["results"]).items():
        tables.show(f"{model}: {title}", tables.FIDELITY_HEAD, tables.fidelity_rows(lines), console)
    console.print(f"Picture: {plot_fidelity.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")


@app.command()
def record(
    model: Annotated[str, typer.Argument(help="Model folder, hub name, or the name of a testbed model.")],
    engine: Annotated[str, typer.Option(help="vllm: its own batches; transformers: lockstep.")] = "vllm",
    policy: Annotated[str, typer.Option(help="What decodes meanwhile.")] = "vanilla",
    batch_size: Annotated[int, typer.Option(help="Sequences that decode together.")] = 16,
    data: Annotated[str, typer.Option(help="testbed, or a file, as for `lynx-moe fidelity`.")] = "testbed",
    sequences: Annotated[int, typer.Option(help="Documents to decode.")] = 224,
    prefix: Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")] = 32,
    steps: Annotated[int, typer.Option(help="Tokens of running text that are decoded.")] = 32,
    seed: Annotated[int, typer.Option(help="Draws the exercises.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ...; auto: as the weights were saved.")] = "auto",
    max_mib: Annotated[float, typer.Option(help="Steps beyond this size are left out.")] = 64,
    out: Annotated[Path, typer.Option(help="The recording.")] = Path("out/recording.safetensors"),
) -> None:
    """Records a model's router logits while it decodes, for `lynx-moe replay`."""
    from lynx_moe.lab import capture, fidelity, recording

    capture.check(engine, batch_size, max_mib)
    settings = fidelity.Settings(
        model=_found(model),
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
    policies: Annotated[str, typer.Option(help="Spec strings between spaces.")] = "vanilla lynx",
    steps: Annotated[int | None, typer.Option(help="Only so many steps, evenly spaced (default: all).")] = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the rows of the table.")] = None,
) -> None:
    """What policies would have decided on recorded router logits, without the model."""
    from lynx_moe.lab import recording, tables
    from lynx_moe.lab.replay import replay as decide

    found = decide(recording.load(recorded), policies.split(), steps)
    tables.show(str(recorded), tables.REPLAY_HEAD, tables.replay_rows(found), Console())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in found))


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
    saved: Annotated[Path, typer.Argument(help="A demo.json, or the .jsonl of `lynx-moe eval` or `fidelity`.")],
    out: Annotated[Path | None, typer.Option(help="The picture (default: beside the record).")] = None,
) -> None:
    """Draws a saved record again, without running anything."""
    from lynx_moe.lab import lines, plot_evaluation, plot_fidelity, plots, record

    if saved.suffix == ".jsonl":
        pictures = {"evaluation": plot_evaluation.draw, "fidelity": plot_fidelity.draw}
        lined = lines.load(saved, *pictures)
        typer.echo(pictures[lined["kind"]](lined, out or saved.with_suffix(".png")))
        return
    loaded = record.load(saved)
    if loaded["kind"] != "demo":
        raise ValueError(f"{saved} is a record of kind {loaded['kind']!r}; only 'demo' records have a picture")
    typer.echo(plots.demo(loaded, out or saved.with_suffix(".png")))


def _sizes(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise ValueError(f"--batch-sizes {text!r} must be whole numbers between commas, such as 2,4,16") from None


def _found(model: str) -> str:
    """A folder or hub name as it is; a plain name is a testbed model's."""
    from lynx_moe.testbed import path as testbed_path

    return model if Path(model).is_dir() or "/" in model else str(testbed_path(model))


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"lynx-moe: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
