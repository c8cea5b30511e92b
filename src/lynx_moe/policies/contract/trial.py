"""A policy is tried on a made-up step before it meets a real one: knobs come from anybody who may send a request."""

import torch

from lynx_moe.policies.contract.policy import Policy
from lynx_moe.routing import RouterSpec, Rows


def tried(policy: Policy, spec: RouterSpec, *, residency: bool = False) -> None:
    """Raises ValueError if the policy cannot decide a step of this router, whatever the reason.

    residency: whether steps tell which experts are in memory."""
    policy.check_residency(told=residency)
    cost_E = torch.linspace(0, 1, spec.num_experts, dtype=torch.float32).round().clamp(min=0.125) if residency else None
    logits_TE = torch.randn(6, spec.num_experts, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 2
    logits_TE[0, spec.top_k :] = -torch.inf
    logits_TE[1] = logits_TE[1, 0]
    try:
        for remap in (None, torch.arange(6) < 4):
            policy.decide(logits_TE, spec, Rows(remap=remap, load_cost_E=cost_E))
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{policy.name} cannot decide a step with these knobs: {reason}") from None
