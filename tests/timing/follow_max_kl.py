"""How `max_kl` follows a workload that changes: `python tests/timing/follow_max_kl.py FAMILY POLICY BATCH [back]`.

A server's own share of shadow steps decides; but every step that is not exact runs twice, so that its KL is known. So
many requests at a time write on from exercises, until no higher price is sought (or SEARCH steps), and from then on
from this project's own guides, which the models never saw anything like. Prints how many steps it took until the mean
of WINDOW steps lay below the bound for good. `back`: from the guides to exercises. `out/follow-max-kl.jsonl` has a line
per run.
"""

import json
import sys
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

from measure_max_kl import steps

from lynx_moe.lab.shared import engine

OUT = Path("out/follow-max-kl.jsonl")
MOST, SEARCH, AFTER, WINDOW, PROMPT = 0.01, 4000, 4000, 200, 24


def main() -> None:
    usual = ("qwen3-moe", "priced", "16", "there")
    family, policy, batch, way = (*sys.argv[1:], *usual[len(sys.argv) - 1 :])
    line = engine.in_own_process(follow, family, policy, int(batch), way == "back")
    OUT.parent.mkdir(exist_ok=True)
    with OUT.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({key: value for key, value in line.items() if key != "kl"})


def follow(family: str, policy: str, batch: int, back: bool) -> dict[str, Any]:
    import transformers

    from lynx_moe.engines.vllm.plugin import register
    from lynx_moe.engines.vllm.step.plan import active
    from lynx_moe.lab.shared.documents import from_testbed
    from lynx_moe.testbed.locate import path

    register()
    model = str(path(family))
    ours = {"policy": policy, "shadow": 1, "max_kl": MOST, "log_every": 0}
    llm = engine.import_vllm().LLM(
        model=model, enforce_eager=True, max_num_seqs=batch, max_model_len=256, additional_config={"lynx_moe": ours}
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    easy = [list(each.prefix) for each in from_testbed(tokenizer, 560, 3, "tune")]
    text = "\n".join(page.read_text() for page in sorted(Path("docs/guides").glob("*.md")))
    ids = tokenizer(text)["input_ids"]
    prose = [ids[start : start + PROMPT] for start in range(0, len(ids) - PROMPT, PROMPT)]
    before_it, after_it = (prose, easy) if back else (easy, prose)
    plan = active()
    plan.bounded = bounded = watched(MOST, plan.policy, 0)
    one = bounded.bound.of(batch)
    took = 0
    for took, _ in enumerate(steps(llm, before_it, batch), 1):
        if (one.settled and one.now.rows > 2000) or took >= SEARCH:
            break
    before, change = one.price, len(bounded.told)
    prices: list[float] = []
    for _ in islice(steps(llm, after_it, batch), AFTER):
        prices.append(one.price)
    after = bounded.told[change:]
    return {
        "family": family,
        "policy": policy,
        "batch": batch,
        "max_kl": MOST,
        "steps": took,
        "price": before,
        "back": back,
        "before": mean(bounded.told[:change][-500:]),
        "first": mean(after[:WINDOW]),
        "passed": last_above(after),
        "after": mean(after),
        "end": mean(after[-500:]),
        "price_after": one.price,
        "changes": dict(one.changes),
        "kl": [kl for _, kl in after],
    }


def watched(*given: Any, **more: Any) -> Any:
    """A `Follow` that tells every step's KL, and lets the bound know of those that a server samples."""
    from lynx_moe.engines.vllm.step.shadows.follow import Follow

    class Watched(Follow):
        def __init__(self) -> None:
            super().__init__(*given, **more)
            self.real: deque[bool] = deque()
            self.reals = 0
            self.told: list[tuple[float, float]] = []

        def due(self, batch: int) -> bool:
            real = super().due(batch)
            self.reals += real
            wanted = real or self.bound.of(batch).price > 0
            if wanted:
                self.real.append(real)
            return wanted

        def hear(self, sample: Any) -> None:
            self.told.append((sample.server.rows, sample.server.kl))
            if self.real.popleft():
                super().hear(sample)

    return Watched()


def mean(told: list[tuple[float, float]]) -> float:
    rows = sum(rows for rows, _ in told)
    return sum(kl for _, kl in told) / rows if rows else 0.0


def last_above(told: list[tuple[float, float]]) -> int:
    """Steps until the mean of the WINDOW steps that follow lies below the bound, and stays there."""
    above = [place for place in range(len(told) - WINDOW) if mean(told[place : place + WINDOW]) > MOST]
    return above[-1] + 1 if above else 0


if __name__ == "__main__":
    main()
