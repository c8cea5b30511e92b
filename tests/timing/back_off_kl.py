"""What the default does on a model that it does not suit: `python tests/timing/back_off_kl.py [MODEL | BATCH]...`.

For each model and batch size a server begins with `priced` and `back_off_kl`, as `lynx-moe serve` does when it is told
nothing. Its own share of shadow steps decides; but every step runs twice, so that its KL is known. Text models write on
from held-out documents, the others from exercises. Prints the table of docs/results/max-kl.md;
`out/back-off-kl.jsonl` has a line per run.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from follow_max_kl import last_above, mean, watched
from measure_max_kl import steps

from lynx_moe.lab.shared import engine, intervals
from lynx_moe.policies import DEFAULT

OUT = Path("out/back-off-kl.jsonl")
MODELS = ("text", "carved", "qwen3-moe", "olmoe", "mixtral", "gpt-oss", "deepseek-v3")
BATCHES = (4, 16)
MOST, BEGINS = 0.01, 24
STEPS = {4: 4000, 16: 2000}


def main() -> None:
    OUT.parent.mkdir(exist_ok=True)
    models = [word for word in sys.argv[1:] if not word.isdigit()] or MODELS
    for batch in [int(word) for word in sys.argv[1:] if word.isdigit()] or BATCHES:
        for model in models:
            line = engine.in_own_process(run, model, batch)
            with OUT.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(row(line), flush=True)


def run(model: str, batch: int) -> dict[str, Any]:
    """One server, from its first step."""
    import transformers

    from lynx_moe.engines import vllm as lynx
    from lynx_moe.engines.vllm.plugin import register
    from lynx_moe.engines.vllm.step.plan import active
    from lynx_moe.lab.shared.documents import from_testbed
    from lynx_moe.testbed.locate import path
    from lynx_moe.testbed.tasks.split import HELD_OUT

    register()
    folder = path(model)
    options = {"policy": DEFAULT, "shadow": 1, "back_off_kl": MOST, "log_every": 0}
    llm = engine.import_vllm().LLM(
        model=str(folder),
        enforce_eager=True,
        max_num_seqs=batch,
        max_model_len=256,
        additional_config={"lynx_moe": options},
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    if (folder / HELD_OUT).exists():
        texts = [json.loads(line)["text"] for line in (folder / HELD_OUT).read_text().splitlines()]
        prompts = [ids[:BEGINS] for ids in tokenizer(texts)["input_ids"] if len(ids) >= BEGINS]
    else:
        prompts = [list(each.prefix) for each in from_testbed(tokenizer, 560, 3, "test")]
    plan = active()
    plan.bounded = follow = watched(MOST, plan.policy, 0, seeks=False)
    one = follow.bound.of(batch)
    kept = []
    for _ in islice(steps(llm, prompts, batch), STEPS[batch]):
        if len(follow.told) == STEPS[batch] // 2:
            lynx.reset_stats()
        kept.append(one.price)
    stats, told = lynx.stats(), follow.told
    begins = [sample for sample, price in zip(told, kept, strict=False) if price == kept[0]]
    ends = told[len(told) // 2 :]
    parts = [ends[start : start + 10] for start in range(0, len(ends), 10)]
    interval = intervals.weighted_mean(
        [mean(part) for part in parts], [sum(rows for rows, _ in part) for part in parts]
    )
    return {
        "model": model,
        "batch": batch,
        "max_kl": MOST,
        "begins": mean(begins),
        "passed": last_above(told),
        "price": one.price,
        "changes": dict(one.changes),
        "kl": mean(told),
        "ends": mean(ends),
        "interval": list(interval),
        "before": stats.mean_before,
        "after": stats.mean_after,
        "real": follow.reals / len(told),
    }


def row(line: dict[str, Any]) -> str:
    begins, ends, whole, low, high = (
        1000 * one for one in (line["begins"], line["ends"], line["kl"], *line["interval"])
    )
    return (
        f"| `{line['model']}` | {line['batch']} | {begins:.3g} | {line['passed']} | {line['price']:.3g} | "
        f"{ends:.3g} [{low:.3g}, {high:.3g}] | {whole:.3g} | "
        f"{line['before']:.1f} → {line['after']:.1f} | {100 * line['real']:.2g} % |"
    )


if __name__ == "__main__":
    main()
