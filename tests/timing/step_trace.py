"""A trace whose load makes a step up and a step down: `python tests/timing/step_trace.py FILE`, for `lynx-moe load`.

Requests come evenly: 2 in 4 seconds, then 72 in 45 seconds, then 6 in 18 seconds; each has a prompt of 8 tokens and an
answer of 100.
"""

import json
import sys
from pathlib import Path

PARTS = ((4.0, 0.5), (45.0, 1.6), (18.0, 1 / 3))  # seconds, requests per second
PROMPT, ANSWER = 8, 100


def main(path: Path) -> None:
    rows, start = [], 0.0
    for seconds, rate in PARTS:
        for number in range(round(seconds * rate)):
            at = round(1e3 * (start + number / rate))
            rows.append({"timestamp": at, "input_length": PROMPT, "output_length": ANSWER, "hash_ids": [len(rows)]})
        start += seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} requests, {(len(rows) - 1) / rows[-1]['timestamp'] * 1e3:.4f} a second: {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
