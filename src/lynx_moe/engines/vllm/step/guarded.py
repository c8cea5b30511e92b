"""What a guard sees of an engine's plan."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from lynx_moe.engines.shared.layers import Layer
from lynx_moe.engines.shared.step.requests import Requests
from lynx_moe.engines.shared.step.rows import StepRows
from lynx_moe.engines.vllm.step.figures import Figures
from lynx_moe.engines.vllm.step.shadows.passes import Shadows
from lynx_moe.policies import ModelShape, Policy
from lynx_moe.routing import Rows


class Guarded(Protocol):
    """`plan.py`. Of this a guard changes the policy, and counts the change; its ladders are among `searches`."""

    graphs: bool
    meets: bool
    recorded: Policy | None
    figures: Figures | None
    device: torch.device
    shape: ModelShape
    layers: list[Layer]
    bypassed: dict[str, str]
    runners: dict[int, Callable[[], Any]]
    rows: StepRows
    requests: Requests
    policy: Policy
    by_layer: list[Policy]
    policy_changes: dict[str, int]
    searches: int
    shadows: Shadows | None

    def put(self, policy: Policy, by_layer: list[Policy]) -> None: ...

    def fitted(self, policy: Policy) -> list[Policy]: ...

    def with_costs(self, layer: int, masks: Rows | None) -> Rows | None: ...
