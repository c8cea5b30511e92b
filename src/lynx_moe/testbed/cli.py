"""`python -m lynx_moe.testbed`: train the small models, write their cards, find them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_moe.testbed.locate import CARVED, cache_root
from lynx_moe.testbed.locate import path as model_path
from lynx_moe.testbed.text.cli import app as text_app

if TYPE_CHECKING:  # transformers takes seconds to import; only the commands that need it do
    from lynx_moe.testbed.model.families import Family

app = typer.Typer(help="Small trained MoE models with real routers.", no_args_is_help=True)
app.add_typer(text_app, name="text")
TOKENS_PER_HOUR = 17e6  # one core of the machine that trained the shipped models; see the cards
Name = Annotated[str, typer.Argument(help="a family; `list` shows them")]


@app.command("train")
def train(
    names: Annotated[list[str] | None, typer.Argument(help="families; all that are not finished by default")] = None,
    out: Annotated[Path, typer.Option(help="folder that gets NAME/")] = Path("models"),
    tokens: Annotated[int | None, typer.Option(help="training budget; the family's own by default")] = None,
    workers: Annotated[int, typer.Option(help="processes of one thread each; the shipped models had one")] = 1,
) -> None:
    """Train models from nothing, or go on with interrupted runs; expect 20 to 30 minutes of a core for each."""
    from lynx_moe.testbed.model.families import TRAINED

    wanted = {name: _family(name) for name in names or TRAINED if names or not _finished(out / name)}
    wanted = wanted if tokens is None else {name: replace(row, num_tokens=tokens) for name, row in wanted.items()}
    total = sum(family.num_tokens for family in wanted.values())
    typer.echo(
        f"{len(wanted)} to train, {total / 1e6:.0f} M tokens: about {total / TOKENS_PER_HOUR:.1f} hours on a core"
    )
    for name, family in wanted.items():
        typer.echo(f"training {name}")
        _train_one(name, family, out, workers)
        write_summary(out)


def _finished(folder: Path) -> bool:
    """Whether weights and card lie there; the twins' cards are shipped alone."""
    return (folder / "scores.json").is_file() and (folder / "model.safetensors").is_file()


def _train_one(name: str, family: "Family", out: Path, workers: int) -> None:
    from lynx_moe.testbed.report.card import measure_exact, write_card
    from lynx_moe.testbed.report.facts import training_record
    from lynx_moe.testbed.training.tokenizer import load_or_train_tokenizer
    from lynx_moe.testbed.training.train import save_model
    from lynx_moe.testbed.training.train import train as run_training

    tokenizer = load_or_train_tokenizer(out / "tokenizer")
    work = out / f".train-{name}"
    model = run_training(family, tokenizer, work, num_workers=workers)
    exact_float32 = measure_exact(model, tokenizer)
    save_model(model, out / name)
    tokenizer.save_pretrained(out / name)
    log = shutil.copy(work / "log.jsonl", out / name / "training.jsonl")
    write_card(out / name, exact_float32=exact_float32, training=training_record(Path(log), family))
    typer.echo(f"saved {out / name}")


@app.command("card")
def card(name: Name) -> None:
    """Measure a trained model again and rewrite its scores.json and README.md."""
    from lynx_moe.testbed.report.card import write_card

    _family(name)
    write_card(_found(name))


@app.command("mtp")
def mtp(
    out: Annotated[Path, typer.Option(help="folder that holds deepseek-v3/")] = Path("models"),
    tokens: Annotated[int | None, typer.Option(help="training budget; the recipe's own by default")] = None,
) -> None:
    """Train an MTP layer on top of deepseek-v3, which stays as it is, or go on with an interrupted run: some minutes
    of a core."""
    from lynx_moe.testbed.mtp import build
    from lynx_moe.testbed.mtp.train import NUM_TOKENS

    folder = out / build.NAME
    if not _finished(folder):
        raise typer.BadParameter(f"no trained {build.NAME} in {out}; train it: lynx-moe testbed train {build.NAME}")
    found = build.build(folder, out / f".train-{build.NAME}-mtp", tokens or NUM_TOKENS)
    shares = ", ".join(f"{100 * share:.1f}" for share in found["agree"])
    typer.echo(f"saved {folder / 'mtp.safetensors'}; the model's first choice by depth: {shares} %")


@app.command("carve")
def carve(
    again: Annotated[bool, typer.Option("--again", help="build it anew though it is there")] = False,
) -> None:
    """Cut a mixture of experts out of SmolLM2-135M, into the cache: about seven minutes of a core."""
    from rich.progress import Progress

    from lynx_moe.testbed.carve import source
    from lynx_moe.testbed.carve.card import summary

    folder = cache_root() / CARVED
    if again or not folder.is_dir():
        source.check()
        from lynx_moe.testbed.carve.build import build

        typer.echo(f"building {folder}: about seven minutes of a core that has nothing else to do")
        with Progress() as progress:
            task = progress.add_task("carving")
            build(folder, lambda what, done, of: progress.update(task, description=what, completed=done, total=of))
    typer.echo(summary(folder))


@app.command("summary")
def write_summary(out: Annotated[Path, typer.Option(help="folder that holds the models")] = Path("models")) -> None:
    """Rewrite README.md of the models' folder: all of them in one table."""
    from lynx_moe.testbed.report.summary import summary

    (out / "README.md").write_text(summary(out), encoding="utf-8")


def _found(name: str) -> Path:
    try:
        return model_path(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _family(name: str) -> "Family":
    from lynx_moe.testbed.model.families import TRAINED

    if name not in TRAINED:
        raise typer.BadParameter(f"{name!r} is not a family; the families are {', '.join(TRAINED)}")
    return TRAINED[name]


@app.command("path")
def path(name: Name) -> None:
    """Print the folder of a trained model."""
    typer.echo(_found(name))


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of the testbed's tasks for lm-evaluation-harness: its --include_path."""
    from lynx_moe.testbed.harness import FOLDER

    typer.echo(FOLDER)


@app.command("list")
def list_families() -> None:
    """Print every family with its size and budget, and whether it is trained."""
    from lynx_moe.testbed.model.families import TRAINED

    for name, family in TRAINED.items():
        try:
            where = str(model_path(name))
        except ValueError:
            where = "not trained"
        config = family.build_config()
        experts = f"{config.num_local_experts} experts, top-{config.num_experts_per_tok}" if family.gate else "dense"
        typer.echo(f"{name}: {experts}, {family.num_tokens / 1e6:.0f} M tokens, {where}")
