"""With this folder on PYTHONPATH torch, oneDNN and vLLM see another CPU in every process: LYNX_TEST_CPU=avx512 (the
default) has AVX-512 and no AMX, avx2 has neither."""

import os

WITHOUT_AVX512 = os.environ.setdefault("LYNX_TEST_CPU", "avx512") == "avx2"
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2" if WITHOUT_AVX512 else "AVX512_CORE_BF16")
if WITHOUT_AVX512:
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")

import torch  # noqa: E402

no = lambda: False  # noqa: E731
torch.cpu._is_amx_tile_supported = torch.cpu._is_amx_fp16_supported = no
if WITHOUT_AVX512:
    torch.cpu._is_avx512_supported = torch.cpu._is_avx512_bf16_supported = no
