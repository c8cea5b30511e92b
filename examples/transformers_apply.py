"""A transformers model under three policies, without a server: `python examples/transformers_apply.py [MODEL]`."""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lynx_moe

MODEL = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "models/qwen3-moe")
PROMPTS = [f"sort: {a} {b} {a + 3} {b - 7} ->" for a in (11, 24, 36, 48) for b in (52, 61, 77, 89)]

tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(MODEL, experts_implementation="eager").eval()
inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt", return_token_type_ids=False)

plain = model.generate(**inputs, max_new_tokens=20, do_sample=False)
for spec in ("priced", "priced:price=0.1", "lynx"):
    with lynx_moe.apply(model, spec) as run:  # leaving the block restores the model, bit for bit
        changed = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        seen = run.stats()
    width = min(plain.shape[1], changed.shape[1])
    same = (plain[:, :width] == changed[:, :width]).all(-1).sum()
    print(
        f"{spec}: {seen.mean_before:.1f} -> {seen.mean_after:.1f} experts, {same} of {len(PROMPTS)} answers unchanged"
    )
assert torch.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False), plain)
