"""`lynx-moe demo | bench | eval | fidelity`: what policies save, and what they cost."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from lynx_moe.cli.options import (
    Baseline,
    BatchSizes,
    Data,
    Dtype,
    Layers,
    Model,
    Out,
    Policies,
    Seed,
    Sequences,
    Shape,
    Split,
    Steps,
    found,
    sizes,
)
from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds per batch size.")]


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
    policies: Baseline = ("vanilla lynx:alpha=3,beta=2 oea:k0=3"),
    batch_sizes: BatchSizes = "1,2,4,8,16",
    rounds: Rounds = 7,
) -> None:
    """Time per output token of policies, interleaved in one engine, on a published layer shape with random weights."""
    from lynx_moe.lab import tables
    from lynx_moe.lab.demo import apart, run_speed
    from lynx_moe.lab.speed import check

    specs = [make_policy(text).spec for text in policies.split()]
    batches = sizes(batch_sizes)
    check(shape, batches)
    path = out / "speed.json"
    options = {"shape": shape, "layers": layers, "policies": specs, "batch_sizes": batches, "rounds": rounds}
    result = apart(run_speed, path, options)
    tables.show(result["model"], tables.SPEED_HEAD, tables.speed_rows(result["summary"]), Console())
    typer.echo(f"Record: {path}")


@app.command("eval")
def evaluate(
    model: Model,
    policies: Baseline = ("vanilla lynx"),
    tasks: Annotated[str, typer.Option(help="lm-evaluation-harness tasks or groups between commas.")] = "lynx_testbed",
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task (default: all).")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests that run at once.")] = 16,
    mix: Annotated[str, typer.Option(help="heterogeneous: tasks share batches; homogeneous: task after task.")] = (
        "heterogeneous"
    ),
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="What generates.")] = "vllm",
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples per question (default: the task's).")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts through the model's chat template.")] = False,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run code that the model writes.")] = False,
    model_args: Annotated[str, typer.Option(help="name=value,... for lm-eval's class of the engine.")] = "",
    control: Annotated[
        bool, typer.Option("--control", help="Also as many random experts as the second policy loads.")
    ] = False,
    guard: Annotated[
        str, typer.Option(help='Every policy also under this quality guard; JSON: {"max_mass_lost": 0.2}.')
    ] = "null",
    out: Out = Path("out/eval"),
) -> None:
    """Any lm-evaluation-harness task under several policies, on the same items; goes on with what --out holds."""
    from lynx_moe.lab import evaluation, plot_evaluation, scores, tables
    from lynx_moe.serve import check_model

    specs = [make_policy(text).spec for text in policies.split()]
    model = found(model)
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
        guard=json.loads(guard),
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
    model: Model,
    policies: Policies = DEFAULT,
    batch_sizes: BatchSizes = "2,4,8,16,32,64",
    data: Data = "testbed",
    mixes: Annotated[str, typer.Option(help="one: batches of one group; mixed: of all groups.")] = "one,mixed",
    caches: Annotated[
        str, typer.Option(help="own: policies read what they wrote; exact: what the model wrote.")
    ] = "own",
    sequences: Sequences = 224,
    prefix: Annotated[int, typer.Option(help="Tokens of running text that are prefilled.")] = 32,
    steps: Steps = 32,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    split: Split = "all",
    out: Out = Path("out/fidelity"),
) -> None:
    """How far policies move the next-token distribution from the model's own; goes on with what --out holds."""
    from lynx_moe.lab import fidelity as measurement
    from lynx_moe.lab import plot_fidelity, tables

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
        split=split,
    )
    console, file = Console(), out / "fidelity.jsonl"
    result = measurement.measure(settings, policies.split(), file, advance=console.print)
    for title, lines in tables.by_cache(result["results"]).items():
        tables.show(f"{model}: {title}", tables.FIDELITY_HEAD, tables.fidelity_rows(lines), console)
    console.print(f"Picture: {plot_fidelity.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")
