"""`lynx-moe load`: latency and throughput of a server on the arrivals of a trace, policies in turns."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import Baseline, Out, found
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def load(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub name, a testbed model, or a published shape (random weights).")
    ],
    trace: Annotated[Path, typer.Option(help="File of requests (.gz too).")],
    kind: Annotated[
        str,
        typer.Option(help="How it is written: timed_trace (Mooncake's JSON lines), burstgpt (CSV), sharegpt (JSON)."),
    ] = "timed_trace",
    policies: Baseline = f"vanilla {DEFAULT}",
    max_kl: Annotated[
        str, typer.Option(help="Bounds in nats between commas: for each a further server, under --max-kl.")
    ] = "",
    rates: Annotated[str, typer.Option(help="Requests per second, between commas.")] = "1",
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective: the longest time to the first token.")] = 1000.0,
    slo_tpot_ms: Annotated[
        str, typer.Option(help="Objectives: the longest times per output token, between commas.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Each policy serves all requests once a round.")] = 3,
    warm_rounds: Annotated[int, typer.Option(help="Rounds before, on servers with a bound.")] = 1,
    requests: Annotated[int, typer.Option(help="The first ones of the trace.")] = 100,
    prompt_scale: Annotated[float, typer.Option(help="Length of prompts, as a share of the trace's.")] = 1.0,
    answer_scale: Annotated[float, typer.Option(help="Length of answers, as a share of the trace's.")] = 1.0,
    serve: Annotated[str, typer.Option(help="More flags of the server, such as '--max-num-seqs 16'.")] = "",
    url: Annotated[
        str | None, typer.Option(help="A server that runs already, in place of one that is started.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws prompts and times.")] = 0,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Also batch, price and TPOT of every second, as a record and a picture.")
    ] = False,
    out: Out = Path("out/load"),
) -> None:
    """Latency, goodput and throughput on the arrivals of a trace, policies in turns; goes on with what --out holds."""
    from lynx_moe.lab.load import measure as measurement
    from lynx_moe.lab.load import shape, show
    from lynx_moe.lab.load import timeline as timelines
    from lynx_moe.lab.shared import lines, tables

    objectives = show.objectives_of(slo_ttft_ms, _numbers(slo_tpot_ms, "--slo-tpot-ms"))
    settings = measurement.Settings(
        model=shape.folder(model, out / "model") if shape.is_shape(model) else found(model),
        trace=trace,
        kind=kind,
        policies=tuple(policies.split()),
        max_kl=tuple(_numbers(max_kl, "--max-kl")),
        rates=tuple(_numbers(rates, "--rates")),
        rounds=rounds,
        warm_rounds=warm_rounds,
        requests=requests,
        prompt_scale=prompt_scale,
        answer_scale=answer_scale,
        seed=seed,
        url=url,
        serve=serve,
    )
    console, file, seconds = terminal.console(), out / "load.jsonl", out / "timeline.jsonl"
    whole = measurement.measure(settings, file, console.print, seconds if timeline else None)
    tables.show(f"{model} on {trace.name}", *show.rows(whole, objectives), console, show.CAPTION)
    if objectives:
        tables.show("Served within an objective", show.SERVED_HEAD, show.served_rows(whole, objectives), console, "")
    console.print(show.note(whole), highlight=False)
    console.print(f"Picture: {show.draw(whole, file.with_suffix('.png'))}")
    console.print(f"Record: {file}")
    if timeline and not seconds.exists():
        raise ValueError(f"{file} was measured without --timeline, and is finished; give another --out")
    if timeline:
        drawn = timelines.draw(lines.load(seconds, timelines.KIND), seconds.with_suffix(".png"))
        console.print(f"Second by second: {drawn}, {seconds}")


def _numbers(text: str, option: str) -> list[float]:
    """Numbers between commas. Raises ValueError for anything else."""
    try:
        return [float(one) for one in text.split(",") if one.strip()]
    except ValueError:
        raise ValueError(f"{option} {text!r} must be numbers between commas, such as 0.5,2") from None
