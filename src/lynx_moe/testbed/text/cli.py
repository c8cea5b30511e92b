"""`lynx-moe testbed text ...`: the corpus, the training, the card of *text*."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="A deeper model, trained on prose and code.", no_args_is_help=True)
Out = Annotated[Path, typer.Option(help="folder that holds the corpus, the tokenizer and the run")]
OUT = Path("out/text")


@app.command("corpus")
def corpus(out: Out = OUT) -> None:
    """Fetch the sources and turn them into documents and tokens; again: what is finished stays."""
    from lynx_moe.testbed.text.documents import collect
    from lynx_moe.testbed.text.fetch import SourceMissing
    from lynx_moe.testbed.text.tokens import encode, tokenizer_of

    try:
        facts = collect(out, tell=typer.echo)
    except (SourceMissing, LookupError) as error:
        raise typer.BadParameter(str(error)) from None
    encode(out, tokenizer_of(out))
    typer.echo(f"{sum(fact['bytes'] for fact in facts) / 1e6:.0f} MB in {out}")


@app.command("train")
def train(
    out: Out = OUT,
    tokens: Annotated[int | None, typer.Option(help="training budget; the recipe's own by default")] = None,
    workers: Annotated[int, typer.Option(help="processes of one thread each")] = 2,
) -> None:
    """Train, or go on with an interrupted run."""
    from lynx_moe.testbed.text.recipe import TEXT, TextCourse
    from lynx_moe.testbed.text.tokens import encode, tokenizer_of
    from lynx_moe.testbed.training.train import train as run_training

    corpus(out)
    tokenizer = tokenizer_of(out)
    encode(out, tokenizer)
    family = TEXT if tokens is None else replace(TEXT, num_tokens=tokens)
    run_training(family, tokenizer, out / "run", course=TextCourse(out, family), num_workers=workers)


@app.command("finish")
def finish(
    steps: Annotated[int, typer.Option(help="steps over which the learning rate falls to its end")] = 1000,
    out: Out = OUT,
) -> None:
    """End a run early and well: from now on its learning rate falls, over so many steps. The run may be going on."""
    from lynx_moe.testbed.training.schedule import finish as finish_run

    try:
        finish_run(out / "run", steps)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@app.command("progress")
def progress(out: Out = OUT) -> None:
    """The last lines of the run's log."""
    for line in (out / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-5:]:
        typer.echo(json.dumps(json.loads(line)))


@app.command("card")
def card(
    out: Out = OUT,
    models: Annotated[Path, typer.Option(help="folder that gets text/: weights, tokenizer and card")] = Path("models"),
    workers: Annotated[int, typer.Option(help="processes that trained, for the hours on the card")] = 2,
) -> None:
    """Save the run as it stands as a model, measure it on held-out documents and write its card."""
    from lynx_moe.testbed.report.summary import summary
    from lynx_moe.testbed.text.card import write_model
    from lynx_moe.testbed.text.recipe import NAME

    files = [out / "run" / name for name in ("checkpoint.pt", "log.jsonl")]
    if not all(file.is_file() and file.stat().st_size for file in files):
        raise typer.BadParameter(
            f"{out / 'run'} holds no checkpoint.pt and log; `lynx-moe testbed text train` makes them"
        )
    write_model(out, models / NAME, num_workers=workers)
    (models / "README.md").write_text(summary(models), encoding="utf-8")
    typer.echo(f"saved {models / NAME}")
