"""`python sglang_plain.py MODEL PROMPTS LENGTH` prints as JSON what plain SGLang answers: token ids of each prompt.

In a process of its own: SGLang asks for plug-ins once in each, and whoever tests ours has been asked already.
"""

import json
import os
import sys

import sglang_here


def main() -> None:
    sglang_here.prepare()
    os.environ.pop("LYNX_MOE_SGLANG", None)
    import sglang

    model, prompts, length = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    engine = sglang.Engine(model_path=model, log_level="error", grammar_backend="none", **sglang_here.ARGUMENTS)
    params = {"temperature": 0, "max_new_tokens": length, "ignore_eos": True}
    answers = engine.generate(prompts, params)
    print("ANSWERS " + json.dumps([answer["output_ids"] for answer in answers]), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()
