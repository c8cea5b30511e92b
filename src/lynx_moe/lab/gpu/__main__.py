"""`python -m lynx_moe.lab.gpu`: what `make gpu-check` runs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lynx_moe.lab.gpu import report, steps
from lynx_moe.lab.shared import record, terminal


def main(
    out: Annotated[Path, typer.Option(help="Folder of the records; steps that are done there are not done again.")],
    only: Annotated[str, typer.Option(help="Steps between commas; default: all but `trained`.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes on the CPU: does it run at all?")] = False,
    step: Annotated[str, typer.Option(hidden=True, help="What a child process does.")] = "",
    apart: Annotated[bool, typer.Option("--apart", hidden=True, help="... with an engine per policy.")] = False,
) -> None:
    """Kernels, decisions and published shapes on this machine's GPU; records, tables, and one record of all."""
    if step:
        steps.measure_here(step, out / f"{step}.json", dry=dry_run, apart=apart)
        sys.stdout.flush()
        os._exit(0)  # without waiting for engines that never came back
    console = terminal.console()
    if not dry_run and steps.device() == "no GPU":
        raise ValueError("torch sees no GPU; --dry-run tries every step on the CPU")
    names = only.split(",") if only else steps.usual()
    records = steps.run(names, out, dry=dry_run, tell=console.print)
    bandwidth = records.get("copy", {}).get("result", {}).get("bytes_per_s")
    for one in records.values():
        if "summary" in one.get("result", {}):
            one["result"] = report.with_savings(one["result"], one["result"].get("bytes_per_s") or bandwidth)
    whole = {"kind": "gpu", "environment": record.environment(), "device": steps.device(), "steps": records}
    path = record.save(whole, out / "gpu.json")
    report.show(records, console)
    console.print(f"Record: {path}")
    if any("failed" in one for one in records.values()):
        sys.exit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"lynx_moe.lab.gpu: error: {error}")
