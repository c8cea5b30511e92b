"""With this folder on PYTHONPATH torch, oneDNN and vLLM see a CPU with AVX-512 and without AMX, in every process."""

import os

os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import torch

torch.cpu._is_amx_tile_supported = torch.cpu._is_amx_fp16_supported = lambda: False
