"""Steps "vllm-SHAPE" where graphs of several policies cannot live in one engine: an engine per policy, one after the
other. Its record says that it is not interleaved: the machine may have changed between two policies."""

from functools import partial
from typing import Any

from lynx_moe.lab.gpu.checks.serve import BATCHES, about, open_all_layers
from lynx_moe.lab.gpu.checks.step import Measure
from lynx_moe.lab.shared.engine import in_own_process
from lynx_moe.lab.speed import measure as speed
from lynx_moe.lab.speed.shapes import SHAPES, tiny

POLICIES = ("vanilla", "priced")  # every engine takes most of a minute to start


def on(shape: str) -> Measure:
    """The step of one shape."""
    return partial(measure, shape)


def measure(name: str, dry: bool) -> dict[str, Any]:
    """The record as `serve.measure` has it, without the time in kernels; distinct experts are counted while timed."""
    shape, batches = tiny(SHAPES[name]) if dry else SHAPES[name], [2] if dry else list(BATCHES[::2])
    samples = [line for policy in POLICIES for line in in_own_process(alone, name, policy, batches, dry)]
    experts = {
        line["batch"]: {"before": line["before"], "after": line["after"]}
        for line in samples
        if line["policy"] != POLICIES[0]
    }
    found = {"samples": samples, "summary": speed.summarise(samples, POLICIES, batches)}
    title = f"{shape.title}, not interleaved: an engine per policy"
    more = {"experts": {POLICIES[1]: experts}, "kernels_us": {}, "interleaved": False}
    return {**about(shape), **found, **more, "title": title}


def alone(name: str, policy: str, batches: list[int], dry: bool) -> list[dict[str, Any]]:
    """The samples of one policy, whose graphs the engine records as it starts."""
    llm = open_all_layers(tiny(SHAPES[name]) if dry else SHAPES[name], batches, policy, dry)
    return speed.interleaved(llm, lambda same: same, [policy], batches, 1 if dry else 2, print)
