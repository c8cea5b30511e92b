"""`lynx-moe eval`: lm-evaluation-harness tasks under policies."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lynx_moe.cli.shared.options import (
    Baseline,
    Model,
    Out,
    Trust,
    found,
    json_of,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()


@app.command("eval")
def evaluate(
    model: Model,
    policies: Baseline = f"vanilla {DEFAULT}",
    tasks: Annotated[
        str, typer.Option(help="lm-evaluation-harness tasks or groups, .yaml files or folders of them, between commas.")
    ] = "lynx_testbed",
    include_path: Annotated[
        Path | None, typer.Option(help="Folder of task files of your own, to be named by --tasks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task (default: all).")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests that run at once.")] = 16,
    mix: Annotated[str, typer.Option(help="heterogeneous: tasks share batches; homogeneous: task after task.")] = (
        "heterogeneous"
    ),
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="What generates.")] = "vllm",
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples per question (default: the task's).")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put prompts through the model's chat template.")] = False,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run code that the model writes.")] = False,
    model_args: Annotated[str, typer.Option(help="name=value,... or JSON for lm-eval's class of the engine.")] = "",
    trust_remote_code: Trust = False,
    control: Annotated[
        bool, typer.Option("--control", help="Also as many random experts as the second policy loads.")
    ] = False,
    guard: Annotated[
        str, typer.Option(help='Every policy also under this quality guard; JSON: {"max_mass_lost": 0.2}.')
    ] = "null",
    out: Out = Path("out/eval"),
) -> None:
    """Any lm-evaluation-harness task under several policies, on the same items; goes on with what --out holds."""
    from lynx_moe.calibration import artifact
    from lynx_moe.engines.shared import config
    from lynx_moe.lab.evaluation import measure as evaluation
    from lynx_moe.lab.evaluation import plot as plot_evaluation
    from lynx_moe.lab.shared import scores, tables

    specs = [make_policy(text).spec for text in policies.split()]
    model = found(model)
    folder = config.folder_of(model)
    for policy in map(make_policy, specs):
        artifact.require(policy)
        if folder is not None and (folder / "config.json").exists() and "hf_overrides" not in model_args:
            config.check(config.read(folder), policy, model)
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
        guard=json_of(guard, "--guard"),
        include_path=None if include_path is None else str(include_path),
        trust_remote_code=trust_remote_code or None,
    )
    console, file = terminal.console(), out / "eval.jsonl"
    result = evaluation.apart(settings, specs, file, allow_code=allow_code)
    if control:
        specs.append(scores.control(result["results"]))
        result = evaluation.apart(settings, specs, file, allow_code=allow_code)
    tables.show(model, *tables.task_table(result["results"]), console)
    if overall := scores.overall(result["results"]):
        means = tables.quality_table(overall, "value", f"mean of {overall[0]['num_tasks']} tasks, %")
        tables.show(f"n = {overall[0]['n']}", *means, console)
        console.print(f"Picture: {plot_evaluation.draw(result, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")
