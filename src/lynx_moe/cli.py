"""The command line: `lynx-moe policies | serve | demo | eval | bench | plot | testbed`."""

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
    try:
        sizes = [int(size) for size in batch_sizes.split(",")]
    except ValueError:
        raise ValueError(
            f"--batch-sizes {batch_sizes!r} must be whole numbers between commas, such as 1,4,16"
        ) from None
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
    out: Out = Path("out/eval"),
) -> None:
    """Any lm-evaluation-harness task under several policies, on the same items; goes on with what --out holds."""
    from lynx_moe.lab import evaluation, plot_evaluation, scores, tables
    from lynx_moe.serve import check_model
    from lynx_moe.testbed import path as testbed_path

    specs = [make_policy(text).spec for text in policies.split()]
    if not Path(model).is_dir() and "/" not in model:
        model = str(testbed_path(model))
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
    tables.show(model, *tables.task_table(result["results"]), console)
    if overall := scores.overall(result["results"]):
        head = ("policy", f"mean of {overall[0]['num_tasks']} tasks, %", *tables.QUALITY_HEAD[2:])
        tables.show(f"n = {overall[0]['n']}", head, tables.quality_rows(overall, "value"), console)
        console.print(f"Picture: {plot_evaluation.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")


@app.command()
def plot(
    saved: Annotated[Path, typer.Argument(help="A demo.json, or the .jsonl of `lynx-moe eval`.")],
    out: Annotated[Path | None, typer.Option(help="The picture (default: beside the record).")] = None,
) -> None:
    """Draws a saved record again, without running anything."""
    from lynx_moe.lab import evaluation, plot_evaluation, plots, record

    if saved.suffix == ".jsonl":
        typer.echo(plot_evaluation.draw(evaluation.load(saved), out or saved.with_suffix(".png")))
        return
    loaded = record.load(saved)
    if loaded["kind"] != "demo":
        raise ValueError(f"{saved} is a record of kind {loaded['kind']!r}; only 'demo' records have a picture")
    typer.echo(plots.demo(loaded, out or saved.with_suffix(".png")))


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"lynx-moe: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
