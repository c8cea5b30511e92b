"""The router that sits in a remapped layer: vLLM's own decides, then the policy may change it.

The change comes before vLLM's capture callback and before the expert-parallel load balancer's mapping (`BaseRouter`
does both after `_compute_routing`), so both see the final logical ids.
"""

from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform

from lynx_moe.engines.vllm.launch.versions import image_bias
from lynx_moe.engines.vllm.model import operator as op


class LynxRouter(BaseRouter):  # type: ignore[misc]
    """`inner` is the router that vLLM made, `layer` the number of the layer in its model's plan; drafts: the model
    drafts for another one."""

    def __init__(self, inner: BaseRouter, layer: int, *, drafts: bool = False) -> None:
        super().__init__(top_k=inner.top_k, global_num_experts=inner.global_num_experts, eplb_state=inner.eplb_state)
        self.inner = inner
        self.layer, self.drafts = layer, drafts
        self.bias_vl, self.image_sentinel_lo = image_bias(inner)

    @property
    def routing_method_type(self) -> RoutingMethodType:
        """What the choice of an expert kernel goes by. On a GPU, kernels that route by themselves would pass the policy
        by; none of them supports Custom. CPU kernels never route by themselves, and some accept listed types only."""
        return self.inner.routing_method_type if current_platform.is_cpu() else RoutingMethodType.Custom

    @property
    def supports_monolithic_kernels(self) -> bool:
        """Asked by vLLM from 0.33 on, for the same purpose."""
        return False

    def unwrap(self) -> BaseRouter:
        """The inner router, with what the model attached to this one."""
        self.inner.bias_vl, self.inner.image_sentinel_lo = self.bias_vl, self.image_sentinel_lo
        return self.inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = self.inner._compute_routing(hidden_states, router_logits, indices_type, input_ids=input_ids)
        change = op.reroute if torch.compiler.is_compiling() else op.decided
        weights, ids = change(router_logits, weights, ids, self.layer, hidden_states, self.drafts)
        return weights, ids
