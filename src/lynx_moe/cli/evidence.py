"""`lynx-moe evidence`: the commands behind the quality tables of README and docs/results, one after another."""

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.lab.evidence import run
from lynx_moe.lab.evidence.steps import steps
from lynx_moe.lab.shared import terminal
from lynx_moe.testbed.locate import CARVED, cache_root

app = typer.Typer()


@app.command()
def evidence(
    out: Annotated[Path, typer.Option(help="Folder of everything.")] = Path("out/evidence"),
    only: Annotated[str, typer.Option(help="Only steps whose name or page holds this.")] = "",
    routes: Annotated[Path, typer.Option(help="A trace of routes (.npz), for its tables.")] = Path("routes.npz"),
    twins: Annotated[Path, typer.Option(help="What `make testbed` trained, for the twins.")] = Path("out/models"),
    show: Annotated[bool, typer.Option("--list", help="Print steps, hours and commands, and run nothing.")] = False,
) -> None:
    """Every quality table of README and docs/results from nothing, many hours; again: what is finished stays."""
    places = {"out": out, "carved": cache_root() / CARVED, "routes": routes, "twins": twins}
    quoted = {name: shlex.quote(str(place)) for name, place in places.items()}
    wanted = [step for step in steps() if only in step.name or only in step.page]
    if not wanted:
        raise ValueError(f"no step or page holds {only!r}; the steps are: {', '.join(step.name for step in steps())}")
    finished, failed = run.Finished(out / "done.txt"), []
    say = partial(terminal.console().print, markup=False, highlight=False, soft_wrap=True)
    for number, step in enumerate(wanted, 1):
        commands = [command.format(**quoted) for command in step.commands]
        missing = [command for command in commands if command not in finished.commands]
        later = (one.minutes for one in wanted[number - 1 :])
        hours = f"about {step.minutes:g} min, with what follows {sum(later) / 60:.1f} h" if missing else "done before"
        say(f"{number} of {len(wanted)}: {step.name}, for {step.page}: {hours}")
        if show:
            say("\n".join(f"    {command}" for command in commands))
        elif missing and step.needs and not Path(step.needs.format(**places)).exists():
            say(f"  left out: there is no {step.needs.format(**places)}")
        elif not all(run.run(command) and finished.add(command) for command in missing):
            failed.append(step.name)
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; the same command goes on where it stopped")
