"""Conversations with the lengths of ShareGPT's, for `lynx-moe load --kind sharegpt`:
`python tests/timing/share_texts.py MODEL FILE`, the model's folder for its tokenizer.

ShareGPT's own file is not part of this repository. What is kept of it: prompts of 161 tokens and answers of 338 on
average (the vLLM paper, section 6.1). Both are drawn lognormal (sigma 1), at most 1024; the texts are pieces of docs/.
"""

import json
import random
import sys
from pathlib import Path

CONVERSATIONS, MEANS, SIGMA, MOST = 400, (161, 338), 1.0, 1024
DOCS = Path(__file__).resolve().parents[2] / "docs"


def main(model: str, path: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))
    ids, rng, made, total = tokenizer.encode(text), random.Random(0), [], [0, 0]
    for _ in range(CONVERSATIONS):
        turns = []
        for turn, mean in enumerate(MEANS):
            count = min(max(round(mean * rng.lognormvariate(-(SIGMA**2) / 2, SIGMA)), 4), MOST)
            start = rng.randrange(len(ids) - count)
            turns.append({"value": tokenizer.decode(ids[start : start + count])})
            total[turn] += count
        made.append({"conversations": turns})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made), encoding="utf-8")
    print(f"{len(made)} conversations, {total[0] / len(made):.0f} and {total[1] / len(made):.0f} tokens: {path}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
