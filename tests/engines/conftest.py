"""vLLM in this process, on a CPU, without any download. The variables must be there before vLLM is imported."""

import os

DEFAULTS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
