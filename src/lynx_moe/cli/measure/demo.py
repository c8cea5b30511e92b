"""`lynx-moe demo`: what the default saves, and what it costs, in minutes."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import Layers, Out, Shape

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
    from lynx_moe.lab.demo.measure import demo as run
    from lynx_moe.lab.speed.measure import check
    from lynx_moe.testbed import path

    check(shape, [1])
    folder = Path(model) if Path(model).is_dir() else path(model)
    run(model=folder, out=out, shape=shape, layers=layers, items_per_task=items_per_task, rounds=rounds)
