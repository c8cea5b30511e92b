"""`python little_offload.py FOLDER MIB [RESIDENT]`: a transformers model that may take so many MiB of memory of its own
(`little_memory.py`); its experts offloaded, or without RESIDENT all of it loaded. Prints the likeliest token after each
of ten, how much memory it has had, and the bytes of slots, as JSON."""

import json
import sys

import torch
from little_memory import limited
from transformers import AutoConfig, AutoModelForCausalLM

import lynx_moe


def main(folder: str, mib: int, resident: str | None = None) -> None:
    torch.set_num_threads(1)
    lynx_moe.offload  # noqa: B018 - what is imported when it is first used is imported before the count begins
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with limited(mib) as most:
        if resident is None:
            model, slots = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager"), 0
        else:
            opened = lynx_moe.offload(folder, resident=resident)
            model, slots = opened.model, opened.bytes
        with torch.no_grad():
            found = model(torch.arange(3, 13)[None]).logits.argmax(-1)[0].tolist()
    print(json.dumps({"tokens": found, "most": most, "slots": slots}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
