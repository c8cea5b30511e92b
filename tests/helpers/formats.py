"""One expert's weights in the formats of quantised checkpoints: name, weight [out, in] (float32) -> tensors by name.

Round to nearest, without calibration data. A weight of 0 stays exactly 0 in all of them.
"""

import torch
from torch import Tensor

from lynx_moe.lab.speed.quantization import BLOCK, GROUP

Tensors = dict[str, Tensor]
NIBBLES = torch.arange(0, 32, 4)  # eight 4-bit numbers in an int32, the first in the lowest bits
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # a number's code is its place; 8 more: negative
LARGEST_E4M3 = 448.0


def w8a8(name: str, weight: Tensor) -> Tensors:
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}


def int4(name: str, weight: Tensor, group: int = GROUP) -> Tensors:
    """compressed-tensors: the packed numbers are 8 more than what they stand for."""
    codes, scale = _symmetric(weight, group)
    shape = torch.tensor(weight.shape)
    return {f"{name}_packed": _pack(codes), f"{name}_scale": scale.bfloat16(), f"{name}_shape": shape}


def as_rounded(weight: Tensor, scheme: str, group: int = GROUP) -> Tensor:
    """What w8a8 or int4 makes of the weight, in its own type. group: inputs that share a scale; for w8a8 all do."""
    most = {"w8a8": 127, "int4": 7}[scheme]
    grouped = weight.unflatten(-1, (-1, group))
    scale = grouped.abs().amax(-1, keepdim=True).clamp(min=1e-8) / most
    return ((grouped / scale).round() * scale).flatten(-2)


def gptq(name: str, weight: Tensor, group: int = GROUP) -> Tensors:
    """The same numbers, eight inputs to an int32, with zero points of which 1 is taken off."""
    codes, scale = _symmetric(weight, group)
    zeros = torch.full_like(scale.T, 7).long()
    return {
        name.replace("weight", "qweight"): _pack(codes).T.contiguous(),
        name.replace("weight", "qzeros"): _pack(zeros),
        name.replace("weight", "scales"): scale.T.half().contiguous(),
        name.replace("weight", "g_idx"): (torch.arange(weight.shape[1]) // group).int(),
    }


def awq(name: str, weight: Tensor, group: int = GROUP) -> Tensors:
    """Eight outputs to an int32, in AWQ's order; zero points between 0 and 15."""
    grouped = weight.unflatten(1, (-1, group))
    low, high = grouped.amin(2, keepdim=True).clamp(max=0), grouped.amax(2, keepdim=True).clamp(min=0)
    scale = (high - low).clamp(min=1e-8) / 15
    zeros = (-low / scale).round().clamp(0, 15)
    codes = ((grouped / scale).round() + zeros).clamp(0, 15).flatten(1).long()
    return {
        name.replace("weight", "qweight"): _pack(_awq_order(codes.T)),
        name.replace("weight", "qzeros"): _pack(_awq_order(zeros.squeeze(2).T.long())),
        name.replace("weight", "scales"): scale.squeeze(2).T.half().contiguous(),
    }


def fp8(name: str, weight: Tensor) -> Tensors:
    blocks = weight.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))  # [out / 128, 128, in / 128, 128]
    scale = blocks.abs().amax((1, 3), keepdim=True).clamp(min=1e-8) / LARGEST_E4M3
    codes = (blocks / scale).to(torch.float8_e4m3fn).flatten(2).flatten(0, 1)
    return {name: codes, f"{name}_scale_inv": scale[:, 0, :, 0].contiguous()}


def fp8_tensor(name: str, weight: Tensor) -> Tensors:
    """One scale for the whole matrix."""
    scale = weight.abs().max() / LARGEST_E4M3
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale": scale}


def mxfp4(name: str, weight: Tensor) -> Tensors:
    """gpt-oss: all experts in one tensor [E, in, out], which becomes blocks [E, out, in / 32, 16] and scales."""
    grouped = weight.transpose(1, 2).unflatten(2, (-1, 32))
    power = grouped.abs().amax(3, keepdim=True).clamp(min=1e-30).log2().floor() - 2  # the largest becomes 4 to 8
    scaled = grouped / 2**power
    codes = (scaled.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    return {
        f"{name}_blocks": (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8),
        f"{name}_scales": (power.squeeze(3) + 127).to(torch.uint8),
    }


def _symmetric(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Codes 0 to 15 (8 stands for 0), [out, in], and scales [out, in / group]."""
    grouped = weight.unflatten(1, (-1, group))
    scale = grouped.abs().amax(2, keepdim=True).clamp(min=1e-8) / 7
    return ((grouped / scale).round().clamp(-8, 7) + 8).flatten(1).long(), scale.squeeze(2)


def _pack(codes: Tensor) -> Tensor:
    """Eight neighbours of the last size to an int32."""
    packed = (codes.unflatten(-1, (-1, 8)) << NIBBLES).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).contiguous()


def _awq_order(codes: Tensor) -> Tensor:
    return codes.unflatten(-1, (-1, 8))[..., AWQ_ORDER].flatten(-2)
