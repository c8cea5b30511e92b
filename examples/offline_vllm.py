"""vLLM in this process, under a policy, and what the policy saved: `python examples/offline_vllm.py [MODEL]`."""

import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, so that stats() can be asked here
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read by vLLM's CPU build alone

from vllm import LLM, SamplingParams

from lynx_moe.engines.vllm import set_policy, stats

MODEL = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "models/qwen3-moe")
PROMPTS = [f"sort: {a} {b} {a + 3} {b - 7} ->" for a in (11, 24, 36, 48) for b in (52, 61, 77, 89)]

llm = LLM(
    MODEL,
    additional_config={"lynx_moe": {"policy": "priced"}},
    enforce_eager=True,
    max_model_len=512,
    max_num_seqs=16,
    enable_prefix_caching=False,
)
params = SamplingParams(temperature=0, max_tokens=24)
answers = [output.outputs[0].text for output in llm.generate(PROMPTS, params, use_tqdm=False)]
print(f"{PROMPTS[0]}{answers[0]}")
print(f"distinct experts per layer and step: {stats().mean_before:.1f} -> {stats().mean_after:.1f}")

set_policy("vanilla")  # the same engine, the model's own routing
plain = [output.outputs[0].text for output in llm.generate(PROMPTS, params, use_tqdm=False)]
print(f"answers that are the same without the policy: {sum(a == b for a, b in zip(answers, plain, strict=True))} of 16")
