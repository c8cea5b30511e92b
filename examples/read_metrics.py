"""What a server's policy saved, from its /metrics: `python examples/read_metrics.py [URL]`.

Without a URL it starts a server and asks it something, as `server_and_client.py` does.
"""

import sys
import time
import urllib.request
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families
from server_and_client import ask, server


def read(url: str) -> Counter[tuple[str, ...]]:
    """Sums of lynx-moe's samples: by name, and by name and the label that tells rows or steps apart."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    sums: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name.startswith("lynx_moe_") else ():
            kind = sample.labels.get("handling") or sample.labels.get("step")
            sums[sample.name, kind or ""] += sample.value
            if sample.name == "lynx_moe_policy_info":
                sums["policy", sample.labels["policy"]] = 1
    return sums


def show(url: str) -> None:
    time.sleep(2)  # a worker writes its numbers every second
    sums = read(url)
    steps = sums["lynx_moe_layer_steps_total", "decode"]
    before, after = (sums[f"lynx_moe_distinct_experts_{when}_total", "decode"] for when in ("before", "after"))
    print("policy:", *(name for what, name in sums if what == "policy"))
    if steps:
        print(f"distinct experts per layer and decode step: {before / steps:.1f} -> {after / steps:.1f}")
    for handling in ("remappable", "exact", "bypassed"):
        print(f"rows, {handling}: {sums['lynx_moe_rows_total', handling]:.0f}")


if __name__ == "__main__":
    if sys.argv[1:]:
        show(sys.argv[1])
    else:
        with server() as url:
            ask(url)
            show(url)
