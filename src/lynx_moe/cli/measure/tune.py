"""`lynx-moe tune`: the cheapest setting that holds a bound on the KL, for each batch size."""

from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import (
    Data,
    Dtype,
    MaxMemory,
    Model,
    Out,
    Prefix,
    Seed,
    Sequences,
    Steps,
    Trust,
    found,
    sizes,
)
from lynx_moe.lab.shared import terminal
from lynx_moe.policies import DEFAULT

app = typer.Typer()


@app.command()
def tune(
    model: Model,
    max_kl: Annotated[float, typer.Option(help="Nats: the bound on the mean KL.")] = 0.01,
    concurrency: Annotated[str, typer.Option(help="Requests that decode together: sizes between commas.")] = "1,4,16",
    policies: Annotated[
        str, typer.Option(help="Spec strings between spaces; a price that is left open is sought.")
    ] = DEFAULT,
    data: Data = "testbed",
    model_args: Annotated[str, typer.Option(help="name=value,... or JSON for vllm.LLM.")] = "",
    sequences: Sequences = 224,
    prefix: Prefix = 32,
    steps: Steps = 32,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: Trust = False,
    out: Out = Path("out/tune"),
) -> None:
    """The cheapest setting that holds a bound on the KL, for each batch size; writes a file for serve --tuned."""
    from lynx_moe.lab.evaluation import arguments
    from lynx_moe.lab.fidelity import served
    from lynx_moe.lab.fidelity.measure import Settings as Decoding
    from lynx_moe.lab.shared import tables
    from lynx_moe.lab.tune import measure, show

    decode = Decoding(
        model=found(model),
        data=data,
        batch_sizes=tuple(sizes(concurrency, "--concurrency")),
        mixes=("mixed",),
        num_sequences=sequences,
        prefix=prefix,
        steps=steps,
        seed=seed,
        dtype=dtype,
        trust_remote_code=trust_remote_code or None,
    )
    engine_args = arguments.read(model_args, served.GIVEN)
    settings = measure.Settings(decode=decode, policies=tuple(policies.split()), max_kl=max_kl)
    console, file = terminal.console(), out / "tune.jsonl"
    whole = measure.measure(settings, file, max_gib=max_memory, engine_args=engine_args)
    tables.show(f"{model}: at most {max_kl:g} nats", show.HEAD, show.rows(whole), console, show.CAPTION)
    console.print(f"Record: {file}", highlight=False)
    tuned = show.write(whole, out / "tuned.json")
    command = f"lynx-moe serve {decode.model} --tuned {tuned}"
    console.print(f"Serve with it: {command}", highlight=False, soft_wrap=True)
