"""Random weights for published layer shapes: for speed only, since their answers mean nothing.

Random gates route unlike trained ones, so they are drawn such that a batch loads about as many distinct experts as was
published for Qwen3-30B-A3B (48.8 of 128 at batch 16, arXiv 2511.02237): every token's embedding shares a common part,
which makes some experts popular. What a run really loaded is measured and reported with it.
"""

from typing import Any

LOAD_FORMAT = "lynx_moe_random"
LOGIT_STD = 1.5  # spread of the router logits: top-1 about 0.12, top-8 of 128 about 0.4 of the softmax mass
COMMON = 0.9  # length of the embeddings' common part, in units of their own part; set by the curve named above


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
            for name, weight in model.named_parameters():
                if name.endswith(("embed_tokens.weight", "embedding.weight")):  # gpt-oss: the latter
                    noise = torch.randn(weight.shape, generator=rng)
                    weight.data.copy_(noise + COMMON * torch.randn(weight.shape[1], generator=rng))
                elif name.endswith(("gate.weight", "router.weight")):
                    noise = torch.randn(weight.shape, generator=rng)
                    weight.data.copy_(noise * (LOGIT_STD / weight.shape[1] ** 0.5))
                elif name.endswith("norm.weight"):
                    weight.data.fill_(1.0)
                else:
                    fill_quantised(name, weight, rng)


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
