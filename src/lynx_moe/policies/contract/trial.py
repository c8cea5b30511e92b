"""A policy is tried on a made-up step before it meets a real one: knobs come from anybody who may send a request."""

import torch

from lynx_moe.policies.contract.policy import Policy
from lynx_moe.routing import RouterSpec, Rows


def tried(policy: Policy, spec: RouterSpec) -> None:
    """Raises ValueError if the policy cannot decide a step of this router, whatever the reason."""
    logits_TE = torch.randn(6, spec.num_experts, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 2
    logits_TE[0, spec.top_k :] = -torch.inf
    logits_TE[1] = logits_TE[1, 0]
    try:
        for rows in (None, Rows(remap=torch.arange(6) < 4)):
            policy.decide(logits_TE, spec, rows)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{policy.name} cannot decide a step with these knobs: {reason}") from None
