"""Quantised random weights: a run's numbers do not depend on what was in memory, and none is NaN or large."""

import pytest
import torch

from lynx_moe.lab.speed.random_weights import fill_quantised
from lynx_moe.lab.speed.shapes import SHAPES


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("w13_weight", torch.int8), ("w13_weight", torch.float8_e4m3fn), ("w2_weight_packed", torch.int32)],
)
def test_nothing_is_left_to_chance(name, dtype):
    bits = dtype.itemsize * 8
    filled = [torch.full((16, 256), 127, dtype=torch.uint8).view(dtype)]
    filled.append(torch.zeros_like(filled[0]))
    for weight in filled:
        fill_quantised(name, weight, torch.Generator().manual_seed(3))
    first, second = (weight.view(torch.uint8) for weight in filled)
    assert torch.equal(first, second)
    assert len(first.unique()) > 8
    if bits == 8:
        assert filled[0].float().abs().max() <= 8  # a packed number cannot be too large


def test_mxfp4_has_any_codes_and_one_small_scale():
    codes, scales = torch.zeros(16, 64, dtype=torch.uint8), torch.full((16, 4), 255, dtype=torch.uint8)
    fill_quantised("w13_weight", codes, torch.Generator().manual_seed(3))
    fill_quantised("w13_weight_scale", scales, torch.Generator())
    assert len(codes.unique()) > 200
    assert scales.unique().tolist() == [118]  # 2**(118 - 127)


def test_other_weights_stay_as_they_are():
    scale = torch.ones(3)
    fill_quantised("w13_weight_scale", scale, torch.Generator())
    assert torch.equal(scale, torch.ones(3))


def test_quantised_shapes_are_the_published_one_with_smaller_experts():
    plain = SHAPES["qwen3-30b"]
    for scheme, times in (("w8a8", 2), ("fp8", 2), ("int4", 3.7)):
        shape = SHAPES[f"qwen3-30b-{scheme}"]
        assert plain.expert_mib / shape.expert_mib >= times
        assert {k: v for k, v in shape.config.items() if k != "quantization_config"} == plain.config
