"""Random weights for published layer shapes: for speed only, since their answers mean nothing.

Random gates would route unlike trained ones, so they are drawn as `gates.py` says: every token's embedding shares a
common part, which makes some experts popular. What a run really loaded is measured and reported with it.
"""

from collections.abc import Mapping
from typing import Any

from lynx_moe.lab.speed.shapes import GATES

LOAD_FORMAT = "lynx_moe_random"
EMBEDDINGS = ("embed_tokens.weight", "embedding.weight")  # gpt-oss: the latter
ROUTERS = ("gate.weight", "router.weight")


def register_loader() -> None:
    """Teaches vLLM the load format LOAD_FORMAT: dummy weights, but embeddings and gates with real spread."""
    import torch
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    @register_model_loader(LOAD_FORMAT)
    class RandomLoader(DummyModelLoader):  # type: ignore[misc]
        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            rng = torch.Generator().manual_seed(0)
            gates = getattr(model_config.hf_config, GATES)
            for name, weight in model.named_parameters():
                if name.endswith((*EMBEDDINGS, *ROUTERS)):
                    fill_routing(name, weight, gates, rng)
                elif name.endswith("norm.weight"):
                    weight.data.fill_(1.0)
                else:
                    fill_quantised(name, weight, rng)


def fill_routing(name: str, weight: Any, gates: Mapping[str, float], rng: Any) -> None:
    """Embeddings that share a common part, and router weights with the spread of logits that is asked for."""
    import torch

    drawn = torch.randn(weight.shape, generator=rng, device=rng.device)
    if name.endswith(EMBEDDINGS):
        drawn += gates["common"] * torch.randn(weight.shape[1], generator=rng, device=rng.device)
    else:
        drawn *= gates["std"] / weight.shape[1] ** 0.5
    weight.data.copy_(drawn)


def fill_quantised(name: str, weight: Any, rng: Any) -> None:
    """What vLLM's dummy weights leave to chance or at 0: numbers so small that experts hardly move the residual."""
    import torch

    if weight.dtype == torch.int8:
        weight.data.random_(-8, 8, generator=rng)
    elif weight.dtype == torch.float8_e4m3fn:
        weight.data.view(torch.uint8).random_(0, 64, generator=rng)  # 0 to 1.875, with scales of either sign
    elif name.endswith("weight_packed"):
        weight.data.random_(generator=rng)
    elif weight.dtype == torch.uint8 and name.endswith("scale"):
        weight.data.fill_(118)  # MXFP4's exponents, of 2**-9
    elif weight.dtype == torch.uint8:
        weight.data.random_(generator=rng)
