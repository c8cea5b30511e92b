"""`lynx-moe serve`: `vllm serve` with a policy on."""

import importlib.util
import os
import sys
from typing import Annotated

import typer

from lynx_moe.policies import DEFAULT, make_policy

app = typer.Typer()
SERVER = "lynx_moe.engines.vllm.launch.serve"


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="MODEL [OPTIONS] [OPTIONS OF VLLM SERVE]",
)
def serve(
    context: typer.Context,
    policy: Annotated[str | None, typer.Option(help=f"Spec string (default: {DEFAULT}).")] = None,
    verify: Annotated[
        str | None, typer.Option(help="How drafts are verified: exact, remap or draft (default: exact).")
    ] = None,
) -> None:
    """`vllm serve MODEL` with a policy on; all else on the line is vLLM's, see `vllm serve --help=all`."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed here; install vllm, or on a machine without GPU, in a clone of "
            "lynx-moe: pip install '.[cpu]'"
        )
    spec = "" if policy is None else make_policy(policy).spec
    os.execv(sys.executable, [sys.executable, "-m", SERVER, spec, verify or "", *context.args])
