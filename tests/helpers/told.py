"""Plans that have counted something, and what a server would tell of them, without an engine."""

from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry, generate_latest

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.tell import collector
from lynx_moe.engines.shared.tell.exporter import Teller, Writer
from lynx_moe.engines.vllm.launch.options import Options
from lynx_moe.engines.vllm.step.plan import Plan
from lynx_moe.engines.vllm.tell.samples import samples
from lynx_moe.lab.watch.scrape import Scrape, parse
from lynx_moe.policies import ModelShape
from lynx_moe.routing import RouterSpec, select

SPEC = RouterSpec(num_experts=60, top_k=4)
LABELS = {"model_name": "m", "engine": "0", "stage": "0"}


def make_plan(first_layer: int = 0, num_drafts: int = 0, **options: object) -> Plan:
    """Three layers, of which the last keeps its own routing, after a decode step of 8 rows and a prompt of 5."""
    shape = ModelShape(model_type="tiny", num_layers=3, num_experts=60, top_k=4, name="tiny")
    given = Options(policy="lynx:alpha=0.3,beta=1", **options)  # type: ignore[arg-type]
    plan = Plan(options=given, shape=shape, max_rows=64, device=torch.device("cpu"), num_drafts=num_drafts)
    names = [f"model.layers.{first_layer + number}.mlp" for number in range(3)]
    plan.layers += [Layer(name=name, spec=SPEC) for name in names]
    plan.seal()
    plan.bypassed[names[2]] = "a reason"
    plan.has_begun = True
    for past_prompt, scheduled in (([True] * 8, [1] * 8), ([False], [5])):
        step(plan, past_prompt, scheduled)
    return plan


def step(plan: Plan, past_prompt: list[bool], scheduled: list[int]) -> None:
    plan.rows.fill(np.array(past_prompt), np.array(scheduled))
    plan.begin_step()
    for layer in range(2):
        logits = 2 * torch.randn(sum(scheduled), 60)
        own = select(logits, SPEC)
        plan.reroute(logits, own.weights, own.ids, layer)


def writer(plan: Plan, instance: str = "i", since: float = 1.0, every: float = 0.01, **labels: str) -> Writer:
    return Writer(plan, Teller(labels=LABELS | labels, instance=instance, since=since, every=every), samples)


def text() -> str:
    registry = CollectorRegistry()
    registry.register(collector.Workers())
    return generate_latest(registry).decode()


def read() -> Scrape:
    return Scrape(parse(text()), 0.0)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))
