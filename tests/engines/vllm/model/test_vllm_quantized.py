"""Quantised experts under a policy: the router is not quantised, and the kernels get the policy's ids."""

import json
from pathlib import Path

import pytest
import quantized
import torch
from tiny_vllm import engine, generate, model_of, prompts, save_model, tokens

from lynx_moe.engines import vllm as lynx_vllm

pytestmark = pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="vLLM's kernels here need AMX")
REQUESTS = prompts(24, seed=5)
KERNELS = [
    ("qwen3_moe", "w8a8", 64, "CPUExpertsInt8"),
    ("qwen3_moe", "int4", 64, "CPUExpertsInt4"),
    ("qwen3_moe", "gptq", 32, "CPUExpertsInt4"),
    ("qwen3_moe", "awq", 32, "CPUExpertsInt4"),
    ("qwen3_moe", "fp8", 64, "CPUExpertsFp8"),
    ("gpt_oss", "mxfp4", 64, "CPUExpertsMxfp4"),
]
REFUSALS = [
    ("int4", 32, {}, "No WNA16 MoE backend supports the deployment configuration"),
    ("gptq", 64, {"sym": False}, "Unsupported quantization config: bits=4, sym=False"),
    ("gptq", 64, {"desc_act": True}, r"desc_act=True\) is no longer supported"),
    ("gptq", 64, {"bits": 8}, "No WNA16 MoE backend supports the deployment configuration"),
    ("fp8", 64, {"weight_block_size": [64, 64]}, "Unsupported FP8 MoE backend: NONE"),
    ("fp8-tensor", 64, {}, "static_scaled_fp8_quant"),
]


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory):
    """The unquantised model of a family, as a folder."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = Path(save_model(family, tmp_path_factory.mktemp(family)))
        return made[family]

    return folder


@pytest.mark.parametrize(("family", "scheme", "group", "kernel"), KERNELS, ids=[row[1] for row in KERNELS])
def test_quantised_experts_run_under_a_policy(bfloat16, tmp_path, family, scheme, group, kernel):
    model = quantized.write(bfloat16(family), tmp_path / "model", scheme, group)
    with engine(model) as llm:
        layers = [module for module in model_of(llm).modules() if hasattr(module, "routed_experts")]
        assert {layer.routed_experts.quant_method.experts_cls.__name__ for layer in layers} == {kernel}
        plain = tokens(generate(llm, REQUESTS))
    assert len({token for answer in plain for token in answer}) > 50  # with NaN in it a model says one token for ever
    with engine(model, "vanilla") as llm:
        assert tokens(generate(llm, REQUESTS)) == plain
        same = lynx_vllm.stats()
        assert same.bypassed_layers == {}
        assert same.mean_after == same.mean_before > 0
        lynx_vllm.set_policy("lynx:alpha=0.3,beta=1")
        lynx_vllm.reset_stats()
        generate(llm, REQUESTS)
        less = lynx_vllm.stats()
    assert less.mean_after < 0.5 * less.mean_before


@pytest.mark.parametrize(("scheme", "group", "changed", "message"), REFUSALS, ids=lambda value: str(value)[:24])
def test_what_plain_vllm_does_not_run_on_a_cpu(bfloat16, tmp_path, scheme, group, changed, message):
    """docs/reference/features.md says so: when vLLM learns one of these, this fails, and the table there changes."""
    config = Path(quantized.write(bfloat16("qwen3_moe"), tmp_path / "model", scheme, group)) / "config.json"
    text = json.loads(config.read_text())
    text["quantization_config"] |= changed
    config.write_text(json.dumps(text))
    with pytest.raises((ValueError, RuntimeError), match=message), engine(str(config.parent)):
        pass
