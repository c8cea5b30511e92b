"""`python little_offload.py FOLDER MIB [RESIDENT]`: a transformers model that may take so many MiB of memory of its own
(`little_memory.py`); its experts offloaded, or without RESIDENT all of it loaded. Prints the tokens of a greedy answer,
how much memory it has had, and the bytes of slots, as JSON."""

import json
import sys

import torch
from little_memory import limited
from transformers import AutoModelForCausalLM

import lynx_moe


def main(folder: str, mib: int, resident: str | None = None) -> None:
    torch.set_num_threads(1)
    lynx_moe.offload  # noqa: B018 - the engine is imported before the count begins
    ids = torch.arange(3, 13)[None]
    with limited(mib) as most:
        if resident is None:
            model, slots = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager"), 0
        else:
            opened = lynx_moe.offload(folder, resident=resident)
            model, slots = opened.model, opened.bytes
        found = model.generate(ids, max_new_tokens=8, do_sample=False)[0].tolist()
    print(json.dumps({"tokens": found, "most": most, "slots": slots}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
