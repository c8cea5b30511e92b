"""`lynx-moe serve`: `vllm serve`, or `sglang serve`, with a policy on."""

import importlib.util
import json
import os
import sys
from typing import Annotated

import typer

from lynx_moe.cli.shared.options import ExpertsFolder, ExpertsResidency, ExpertsResident
from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()
ENGINES = {
    "vllm": "vLLM is not installed here; install vllm, or on a machine without GPU, in a clone of "
    "lynx-moe: pip install '.[cpu]'",
    "sglang": "SGLang is not installed here; install sglang",
}


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="MODEL [OPTIONS] [OPTIONS OF THE ENGINE]",
)
def serve(
    context: typer.Context,
    policy: Annotated[str | None, typer.Option(help=f"Spec string (default: {DEFAULT}).")] = None,
    verify: Annotated[
        str | None, typer.Option(help="How drafts are verified: exact, remap or draft (default: exact).")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Nats: the price follows the KL that is measured, up to this bound.")
    ] = None,
    back_off_kl: Annotated[
        float | None,
        typer.Option(help="Nats: prices begin with the policy's, and fall where more is measured (no policy: 0.01)."),
    ] = None,
    slo_tpot_ms: Annotated[
        float | None, typer.Option(help="Milliseconds a token: prices are no higher than this needs.")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="File of `lynx-moe tune`: what acts at which batch size.")] = None,
    experts_resident: ExpertsResident = None,
    experts_folder: ExpertsFolder = None,
    experts_residency: ExpertsResidency = None,
    doctor: Annotated[
        str | None, typer.Option(help="doctor.json of `lynx-moe doctor`: batches that gain nothing are exact.")
    ] = None,
    act_from: Annotated[int | None, typer.Option(help="Batches of fewer requests are exact (default: 1).")] = None,
    act_to: Annotated[int | None, typer.Option(help="Batches of more requests are exact (default: no limit).")] = None,
    engine: Annotated[str, typer.Option(help="vllm, or sglang, which takes --policy and --verify alone.")] = "vllm",
) -> None:
    """`vllm serve MODEL` (`sglang serve MODEL`) with a policy on; all else on the line is the engine's own, see
    `vllm serve --help=all`, `sglang serve --help`."""
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine!r} is unknown; allowed: {', '.join(ENGINES)}")
    if importlib.util.find_spec(engine) is None:
        raise ValueError(ENGINES[engine])
    spec = None if policy is None else make_policy(policy).spec
    asked = {"policy": spec, "verify": verify, "max_kl": max_kl, "back_off_kl": back_off_kl}
    asked |= {"slo_tpot_ms": slo_tpot_ms, "tuned": tuned}
    asked |= {"experts_resident": experts_resident, "experts_folder": experts_folder}
    asked |= {"experts_residency": experts_residency}
    asked |= {"doctor": doctor, "act_from": act_from, "act_to": act_to}
    asked = {key: value for key, value in asked.items() if value is not None}
    more = [f"--{key.replace('_', '-')}" for key in asked if key not in ("policy", "verify")]
    if more and engine != "vllm":
        raise ValueError(f"{more[0]} is known on vLLM only; leave it out, or --engine {engine}")
    server = f"lynx_moe.engines.{engine}.launch.serve"
    os.execv(sys.executable, [sys.executable, "-m", server, json.dumps(asked), *context.args])
