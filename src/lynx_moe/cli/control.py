"""`lynx-moe policy`: what a running server acts by, and a switch of it."""

from typing import Annotated, Any

import typer

from lynx_moe.engines.shared.switching import Switch

app = typer.Typer()
OFF = "off"


@app.command()
def policy(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://localhost:8000.")],
    spec: Annotated[str | None, typer.Argument(help="Spec string of another policy (default: it stays).")] = None,
    max_kl: Annotated[str | None, typer.Option(help="Another bound in nats, such as 0.01, or off.")] = None,
    slo_tpot_ms: Annotated[
        str | None, typer.Option(help="Another objective in milliseconds a token, such as 25, or off.")
    ] = None,
) -> None:
    """Tells the policy and the goals of a running server, after switching what is named; VLLM_API_KEY is its key."""
    from lynx_moe.lab.watch import control

    goals = {"max_kl": max_kl, "slo_tpot_ms": slo_tpot_ms}
    named = {name: _number(name, text) for name, text in goals.items() if text is not None}
    asked = Switch(policy=spec, goals=named)
    found = control.switch(url, asked) if asked.body else control.told(url)
    for name in (name for name in ("policy", *goals, "back_off_kl") if name in found):
        typer.echo(f"{name:12} {OFF if found[name] is None else found[name]}")
    if not found.get("agree", True):
        typer.echo(f"The {found['workers']} workers do not all say the same; this is the first one's answer.")


def _number(name: str, text: str) -> Any:
    """None for "off". Raises ValueError for what is no number."""
    if text == OFF:
        return None
    try:
        return float(text)
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise ValueError(f"{option} {text!r} must be a number, or {OFF} to turn it off") from None
