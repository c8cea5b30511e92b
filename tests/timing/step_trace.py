"""A trace with lengths like ShareGPT's whose load makes a step up and a step down:
`python tests/timing/step_trace.py FILE`, for `lynx-moe load`.

ShareGPT's own file is not part of this repository. What is kept of it: prompts of 161 tokens and answers of 338 on
average (the vLLM paper, section 6.1), drawn lognormal (sigma 1), at most 1024. Requests come at random (Poisson): for 5
seconds 0.4 a second, for 20 seconds 2.2, for 7 seconds 0.4.
"""

import json
import random
import sys
from pathlib import Path

PARTS = ((5.0, 0.4), (20.0, 2.2), (7.0, 0.4))  # seconds, requests per second
PROMPT, ANSWER, SIGMA, MOST = 161, 338, 1.0, 1024


def main(path: Path) -> None:
    rng, rows, start = random.Random(3), [], 0.0

    def length(mean: int) -> int:
        return min(max(round(mean * rng.lognormvariate(-(SIGMA**2) / 2, SIGMA)), 4), MOST)

    for seconds, rate in PARTS:
        at = start + rng.expovariate(rate)
        while at < start + seconds:
            row = {"timestamp": round(1e3 * at), "input_length": length(PROMPT), "output_length": length(ANSWER)}
            rows.append(row | {"hash_ids": [2 * len(rows), 2 * len(rows) + 1]})
            at += rng.expovariate(rate)
        start += seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    span = (rows[-1]["timestamp"] - rows[0]["timestamp"]) / 1e3
    print(f"{len(rows)} requests, {(len(rows) - 1) / span:.4f} a second: {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
