"""`python -m lynx_moe.testbed`: train the small models, write their cards, find them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lynx_moe.testbed.locate import path as model_path

if TYPE_CHECKING:  # transformers takes seconds to import; only the commands that need it do
    from lynx_moe.testbed.families import Family

app = typer.Typer(help="Small trained MoE models with real routers.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="a family; `list` shows them")]


@app.command("train")
def train(
    name: Name,
    out: Annotated[Path, typer.Option(help="folder that gets NAME/")] = Path("models"),
    tokens: Annotated[int | None, typer.Option(help="training budget; the family's own by default")] = None,
    workers: Annotated[int, typer.Option(help="processes of one thread each; the shipped models had one")] = 1,
) -> None:
    """Train one model from nothing, or go on with a run that was interrupted."""
    import torch

    from lynx_moe.testbed.card import measure_exact, training_record, write_card
    from lynx_moe.testbed.tokenizer import load_or_train_tokenizer
    from lynx_moe.testbed.train import train as run_training

    family = _family(name)
    tokenizer = load_or_train_tokenizer(out / "tokenizer")
    family = family if tokens is None else replace(family, num_tokens=tokens)
    work = out / f".train-{name}"
    model = run_training(family, tokenizer, work, num_workers=workers)
    exact_float32 = measure_exact(model, tokenizer)
    model.to(torch.bfloat16).save_pretrained(out / name)
    tokenizer.save_pretrained(out / name)
    log = shutil.copy(work / "log.jsonl", out / name / "training.jsonl")
    write_card(out / name, exact_float32=exact_float32, training=training_record(Path(log), family))
    typer.echo(f"saved {out / name}")


@app.command("card")
def card(name: Name) -> None:
    """Measure a trained model again and rewrite its scores.json and README.md."""
    from lynx_moe.testbed.card import write_card

    _family(name)
    write_card(_found(name))


def _found(name: str) -> Path:
    try:
        return model_path(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _family(name: str) -> "Family":
    from lynx_moe.testbed.families import FAMILIES

    if name not in FAMILIES:
        raise typer.BadParameter(f"{name!r} is not a family; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]


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
    from lynx_moe.testbed.families import FAMILIES

    for name, family in FAMILIES.items():
        try:
            where = str(model_path(name))
        except ValueError:
            where = "not trained"
        experts, top_k = family.config["num_experts"], family.config["num_experts_per_tok"]
        typer.echo(f"{name}: {experts} experts, top-{top_k}, {family.num_tokens / 1e6:.0f} M tokens, {where}")
