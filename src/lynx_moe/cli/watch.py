"""`lynx-moe top | dashboard`: a server seen in a terminal and in Grafana."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from lynx_moe.lab.shared import terminal

app = typer.Typer()


@app.command()
def top(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://localhost:8000.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between frames.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One frame of everything since the start, then end.")] = False,
) -> None:
    """Live view of a server's metrics: experts before and after, rates, guard, policy. Ctrl-C ends it."""
    from lynx_moe.lab.watch.frame import frame
    from lynx_moe.lab.watch.scrape import scrape

    console, earlier = terminal.console(), scrape(url)
    if once:
        console.print(terminal.fitted(console, frame(earlier, None, url)))
        return
    try:
        first = terminal.fitted(console, frame(earlier, None, url))
        with Live(first, console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                try:
                    now = scrape(url)
                except ValueError as error:  # it may come back
                    live.update(Text(str(error)), refresh=True)
                    continue
                live.update(terminal.fitted(console, frame(now, earlier, url)), refresh=True)
                earlier = now
    except KeyboardInterrupt:
        return


@app.command()
def dashboard(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File (default: standard output).")] = None,
) -> None:
    """A Grafana dashboard of these metrics, as JSON to import."""
    from lynx_moe.lab.watch.dashboard import text

    if out is None:
        typer.echo(text(), nl=False)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text(), encoding="utf-8")
    typer.echo(f"Dashboard: {out}")
