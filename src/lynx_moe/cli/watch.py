"""`lynx-moe top | dashboard | guard-cost`: a server seen in a terminal and in Grafana; what its guard costs."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from lynx_moe.cli.options import BatchSizes, Layers, Out, Policies, Shape, sizes
from lynx_moe.policies import make_policy

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

    earlier = scrape(url)
    if once:
        Console().print(frame(earlier, None, url))
        return
    try:
        with Live(frame(earlier, None, url), console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(every)
                now = scrape(url)
                live.update(frame(now, earlier, url), refresh=True)
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
    out.write_text(text())
    typer.echo(f"Dashboard: {out}")


@app.command("guard-cost")
def guard_cost(
    guard: Annotated[str, typer.Option(help="The guard's options, as JSON.")] = '{"max_mass_lost": 1, "max_error": 1}',
    shape: Shape = "qwen3-30b",
    layers: Layers = None,
    policies: Policies = "lynx:alpha=3,beta=2",
    batch_sizes: BatchSizes = "16",
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of two runs, the guard on and off in turns of 8 steps.")
    ] = 7,
    tokens: Annotated[int, typer.Option(help="Tokens of a run.")] = 257,
    out: Out = Path("out/guard"),
) -> None:
    """Throughput of policies with and without a quality guard, interleaved in one engine on a published layer shape."""
    from lynx_moe.lab import tables
    from lynx_moe.lab.demo import apart, run_guard_cost
    from lynx_moe.lab.guard_cost import CAPTION, HEAD, table

    specs = [make_policy(text).spec for text in policies.split()]
    options = {"shape": shape, "layers": layers, "policies": specs, "batch_sizes": sizes(batch_sizes)}
    options |= {"rounds": rounds, "tokens": tokens, "guard": json.loads(guard)}
    result = apart(run_guard_cost, out / "guard.json", options)
    tables.show(result["model"], HEAD, table(result["summary"]), Console(), CAPTION)
    typer.echo(f"Record: {out / 'guard.json'}")
