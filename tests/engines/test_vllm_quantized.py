"""Quantised experts under a policy: the router is not quantised, and the kernels get the policy's ids."""

from pathlib import Path

import pytest
import quantized
from tiny_vllm import FAMILIES, engine, generate, model_of, prompts, save_model, tokens

from lynx_moe.engines import vllm as lynx_vllm

REQUESTS = prompts(24, seed=5)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory):
    """Experts wide enough for groups of 64 inputs."""
    prefix, special = FAMILIES["qwen3_moe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "qwen3_moe", (prefix, {**special, "moe_intermediate_size": 64}))
        return Path(save_model("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe")))


@pytest.mark.parametrize(("scheme", "method"), [("w8a8", "W8A8Int8"), ("int4", "WNA16")])
def test_quantised_experts_run_under_a_policy(bfloat16, tmp_path, scheme, method):
    model = quantized.write(bfloat16, tmp_path / "model", scheme)
    with engine(model) as llm:
        plain = tokens(generate(llm, REQUESTS))
    with engine(model, "vanilla") as llm:
        kinds = {type(m.routed_experts.quant_method).__name__ for m in model_of(llm).modules() if hasattr(m, "router")}
        assert len(kinds) == 1
        assert method in kinds.pop()
        assert tokens(generate(llm, REQUESTS)) == plain
        same = lynx_vllm.stats()
        assert same.bypassed_layers == {}
        assert same.mean_after == same.mean_before > 0
        lynx_vllm.set_policy("lynx:alpha=0.3,beta=1")
        lynx_vllm.reset_stats()
        assert tokens(generate(llm, REQUESTS)) != plain
        less = lynx_vllm.stats()
    assert less.mean_after < 0.5 * less.mean_before
