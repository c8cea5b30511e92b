"""Steps "copy" and "decision": what memory gives, and what a decision costs, by itself and beside empty launches."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from lynx_moe.kernels import gpu
from lynx_moe.policies import make_policy
from lynx_moe.routing import RouterSpec, Routing, Rows, select

POLICIES = (
    *("priced", "lynx", "oea:k0={k0}"),  # on every router
    *("lynx:alpha=3,beta=2", "xshare:alpha=0.5", "lynx-v1", "random:num_keep=32", "priced:num_keep=32"),
)
ROUTERS: dict[str, tuple[int, int, dict[str, Any]]] = {  # (experts, top-k, what else)
    "softmax-128-8": (128, 8, {}),
    "softmax-8-2": (8, 2, {}),
    "softmax-512-10": (512, 10, {}),
    "sigmoid-256-8": (256, 8, {"scoring": "sigmoid", "groups": (8, 4), "scale": 2.5}),
}
ROWS = (1, 4, 16, 64, 128, 256)
LAYERS = 48  # decisions in a row, as in a model's step


def copy_bandwidth(dry: bool) -> dict[str, Any]:
    """Bytes read and written per second by a device-to-device copy, the median of ten."""
    device, size = ("cpu", 2**20) if dry else ("cuda", 2**32)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    seconds = [_seconds(lambda: target.copy_(source), device) for _ in range(12)][2:]
    return {"bytes_per_s": 2 * size / statistics.median(seconds), "bytes": size}


def measure(dry: bool) -> dict[str, Any]:
    """Microseconds per layer of every policy, number of rows and router, in the replay of a graph of LAYERS decisions;
    beside it graphs of as many times one and two empty kernels, and of the plain-torch definition."""
    rows, routers, layers = ((2,), ("softmax-8-2",), 1) if dry else (ROWS, tuple(ROUTERS), LAYERS)
    floors = {number: _per_layer(lambda n=number: _empty(n), layers, dry) for number in (1, 2)}  # type: ignore[misc]
    cases = [
        (router, num_rows, text.format(k0=min(3, ROUTERS[router][1])))
        for router in routers
        for num_rows in rows
        for text in (POLICIES if router == "softmax-128-8" else POLICIES[:3])
    ]
    if not dry:
        compile_ahead([(policy, num_rows, *ROUTERS[router]) for router, num_rows, policy in cases])
    lines: list[dict[str, Any]] = []
    for router, num_rows, policy in cases:
        decide, define = _decisions(policy, num_rows, *ROUTERS[router], dry=dry)
        lines.append({"router": router, "rows": num_rows, "policy": policy, "us": _per_layer(decide, layers, dry)})
        if num_rows == 16 or dry:
            lines[-1]["torch_us"] = _per_layer(define, layers, dry)
    return {"layers": layers, "empty_us": floors, "lines": lines}


def compile_ahead(cases: Sequence[tuple[str, int, int, int, dict[str, Any]]]) -> None:
    """Fills Triton's cache on disk: every kernel is compiled for seconds, here twelve at a time.

    cases: policy, rows, experts, top-k, what else the router has.
    """
    with ProcessPoolExecutor(12, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile, cases))


def _compile(case: tuple[str, int, int, int, dict[str, Any]]) -> None:
    decide, _ = _decisions(*case, dry=False)
    decide()
    torch.cuda.synchronize()


def _decisions(
    text: str, num_rows: int, num_experts: int, top_k: int, more: dict[str, Any], *, dry: bool
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    device, rng = "cpu" if dry else "cuda", torch.Generator().manual_seed(0)
    bias = torch.zeros(num_experts, device=device) if "groups" in more else None
    spec = RouterSpec(num_experts=num_experts, top_k=top_k, bias=bias, **more)
    logits = (1.5 * torch.randn(num_rows, num_experts, generator=rng)).bfloat16().to(device)
    own = select(logits, spec)
    own = Routing(own.ids.int(), own.weights)
    rows = Rows(valid=torch.ones(num_rows, device=device).bool(), remap=torch.ones(num_rows, device=device).bool())
    policy = make_policy(text)
    if not gpu.fits(logits):
        raise RuntimeError(f"no kernel takes {num_rows} rows of {spec}")
    return lambda: policy.decide(logits, spec, rows, own), lambda: policy.route(logits, spec, rows, own)


def _empty(number: int) -> None:
    from lynx_moe.lab.gpu.checks.empty import launch

    for _ in range(number):
        launch()


def _per_layer(function: Callable[[], Any], layers: int, dry: bool) -> float:
    """Microseconds of one of `layers` calls in a graph's replay: the median of 9 means of 20. Dry: of one call."""
    if dry:
        return 1e6 * _seconds(function, "cpu")
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(layers):
            function()

    def replay() -> None:
        for _ in range(20):
            graph.replay()

    times = [_seconds(replay, "cuda") for _ in range(11)][2:]
    return 1e6 * statistics.median(times) / 20 / layers


def _seconds(function: Callable[[], Any], device: str) -> float:
    """Of one call, by the device's own clock where it has one."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
