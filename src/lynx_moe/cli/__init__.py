"""lynx-moe: fewer experts per decode step. Serve with a policy, measure what it saves and what it costs."""

import os
import sys
from dataclasses import MISSING
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from lynx_moe.cli import control, evidence, serve, show, watch
from lynx_moe.cli.measure import (
    bakeoff,
    calibrate,
    demo,
    doctor,
    evaluation,
    fidelity,
    load,
    profile,
    replay,
    speculation,
    speed,
    tune,
)
from lynx_moe.cli.shared import errors, version
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import POLICIES, SHARED, Policy, knobs
from lynx_moe.testbed.cli import app as testbed

TRACEBACK = "LYNX_MOE_TRACEBACK"
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def _versions(wanted: bool) -> None:
    if wanted:
        typer.echo(version.text())
        raise typer.Exit


@app.callback()
def every_command(
    _: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_versions, help="Versions of lynx-moe, vLLM, transformers and torch."
        ),
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help=f"Errors whole; also {TRACEBACK}=1.")] = False,
) -> None:
    """What stands before the commands."""
    if traceback:
        os.environ[TRACEBACK] = "1"


@app.command()
def policies() -> None:
    """Every policy, its knobs with their defaults, and where it was published."""
    console, table = terminal.console(), Table(box=box.SIMPLE_HEAD)
    between = "  " if terminal.is_endless(console) else "\n"
    for column in ("policy", "knobs", "what stays", "source"):
        table.add_column(column, no_wrap=column in ("policy", "knobs"))
    for name, policy in POLICIES.items():
        own = {knob: about for knob, about in knobs(policy).items() if knob not in SHARED}
        lines = [f"{knob}: {kind.__name__}{_default(policy, knob, value)}" for knob, (kind, value) in own.items()]
        table.add_row(name, between.join(lines) or "-", policy.summary, policy.source)
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


for room in (
    serve,
    doctor,
    demo,
    speed,
    load,
    evaluation,
    speculation,
    fidelity,
    tune,
    bakeoff,
    profile,
    replay,
    calibrate,
    evidence,
    show,
    watch,
    control,
):
    app.add_typer(room.app)
app.add_typer(testbed, name="testbed")


def main() -> None:
    """Entry point: what a user can mend ends in one line and exit code 2, a fault of ours in its traceback."""
    try:
        app()
    except Exception as error:
        if os.environ.get(TRACEBACK) or errors.is_fault(error):
            raise
        print(f"lynx-moe: error: {errors.line(error)}", file=sys.stderr)
        sys.exit(2)
