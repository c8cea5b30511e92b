"""Measures what `max_kl` keeps: `python tests/timing/measure_max_kl.py [MODEL | BATCH]...`, without any all of them.

For each testbed model, batch size and bound: a search on prompts of the split "tune", until the batch's bucket is
settled or MOST_SHADOWS are spent; then the price that it has come to is fixed, and every step is shadowed on prompts of
the split "test". Every step of a search is a shadow step, where a server takes one in four: as many shadow steps, in a
quarter of the steps. Prints the table of docs/results/max-kl.md. `out/max-kl.jsonl` has the records; what is in it is
not measured again. MODEL-w8a8 and MODEL-int4 are models whose experts were rounded so, made in `out/` at first. Prompts
are exercises, or the beginnings of windows of the documents that were held out from a model that came with some.
"""

import json
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from lynx_moe.control import bound
from lynx_moe.control.sampling import bucket
from lynx_moe.lab.shared import engine, intervals
from lynx_moe.lab.shared.documents import from_file, from_testbed

OUT = Path("out/max-kl.jsonl")
MODELS = ("qwen3-moe", "olmoe", "mixtral", "gpt-oss", "deepseek-v3", "text", "qwen3-moe-w8a8", "qwen3-moe-int4")
BATCHES, BOUNDS = (64, 16, 4, 1), (0.01, 0.001)
MOST_SHADOWS = {1: 4000, 4: 3000, 16: 1000, 64: 400}
MEASURED = {1: 1200, 4: 700, 16: 300, 64: 150}  # steps
TOKENS, PREFIX = 48, 32  # of a request; of a text that begins it
GROUP = 10  # steps whose mean is one value of the interval


def main() -> None:
    done = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    OUT.parent.mkdir(exist_ok=True)
    batches = [int(word) for word in sys.argv[1:] if word.isdigit()]
    families = [word for word in sys.argv[1:] if not word.isdigit()]
    for batch in batches or BATCHES:
        for family in families or MODELS:
            known = {(line["family"], line["batch"], line["max_kl"]) for line in done}
            for most in (most for most in BOUNDS if (family, batch, most) not in known):
                done.append(engine.in_own_process(cell, family, batch, most))
                with OUT.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    print(table(done))


def cell(family: str, batch: int, most: float) -> dict[str, Any]:
    """One family, batch size and bound, on an engine of its own."""
    import transformers

    from lynx_moe.engines import vllm as lynx
    from lynx_moe.engines.vllm.plugin import register
    from lynx_moe.engines.vllm.step.plan import active
    from lynx_moe.engines.vllm.step.shadows.follow import Follow

    bound.DENSE = 1.0
    register()
    model = folder(family)
    llm = engine.import_vllm().LLM(
        model=model,
        enforce_eager=True,
        max_num_seqs=batch,
        max_model_len=256,
        additional_config={"lynx_moe": {"policy": "priced", "shadow": 1, "log_every": 0}},
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    prompts = {split: prompts_of(Path(model), tokenizer, split) for split in ("tune", "test")}
    plan = active()
    plan.bounded = follow = Follow(most, plan.policy, -1)
    one = follow.bound.of(batch)
    for _ in steps(llm, prompts["tune"], batch):
        if one.settled or plan.shadows.sums.steps >= MOST_SHADOWS[batch]:
            break
    shadows, plan.bounded = plan.shadows.sums.steps, None
    lynx.set_policy(f"priced:price={one.price}" if one.price else "vanilla")
    line = {"family": family, "batch": batch, "max_kl": most, "price": one.price, "settled": one.settled}
    line |= {"shadows": shadows, "changes": dict(one.changes), "kl": 0.0, "interval": [0.0, 0.0], "kept": 1.0}
    return line | (measured(llm, prompts["test"], batch) if one.price else {})


def prompts_of(model: Path, tokenizer: Any, split: str) -> list[list[int]]:
    from lynx_moe.testbed.tasks.split import HELD_OUT

    held_out = model / HELD_OUT
    if not held_out.exists():
        return [list(each.prefix) for each in from_testbed(tokenizer, 560, 3, split)]
    found = [list(each.prefix) for each in from_file(held_out, tokenizer, sys.maxsize, PREFIX, TOKENS, split)]
    Random(3).shuffle(found)  # the file has one kind of text after the other
    return found


def folder(family: str) -> str:
    """A testbed model, or what is made of it."""
    from lynx_moe.testbed.locate import path

    base, _, scheme = family.rpartition("-")
    if scheme not in ("w8a8", "int4"):
        return str(path(family))
    target = OUT.parent / family
    if not (target / "model.safetensors").exists():
        sys.path.append(str(Path(__file__).parents[1] / "helpers"))
        import quantized

        quantized.rounded(path(base), target, scheme)
    return str(target)


def measured(llm: Any, prompts: list[list[int]], batch: int) -> dict[str, Any]:
    """The policy as it is, every step shadowed."""
    from lynx_moe.engines import vllm as lynx
    from lynx_moe.engines.vllm.step.plan import active

    samples: list[Any] = []
    sums = active().shadows.sums
    sums.add = samples.append
    lynx.reset_stats()
    for number, _ in enumerate(steps(llm, prompts, batch)):
        if number == MEASURED[batch]:
            break
    del sums.add
    mine = [sample.server for sample in samples if bucket(sample.batch) == bucket(batch)]
    parts = [mine[start : start + GROUP] for start in range(0, len(mine), GROUP)]
    rows = [sum(effect.rows for effect in part) for part in parts]
    means = [sum(effect.kl for effect in part) / count for part, count in zip(parts, rows, strict=True)]
    stats = lynx.stats()
    return {
        "kl": sum(effect.kl for effect in mine) / sum(rows),
        "agree": sum(effect.agree for effect in mine) / sum(rows),
        "rows": sum(rows),
        "interval": list(intervals.weighted_mean(means, rows)),
        "before": stats.mean_before,
        "after": stats.mean_after,
        "kept": stats.mean_after / stats.mean_before,
    }


def steps(llm: Any, prompts: list[list[int]], batch: int) -> Iterator[int]:
    """Serves so many requests at a time, a new one for each that ends; after each step. Nothing runs at the end."""
    from vllm import SamplingParams

    left, running, number = cycle(prompts), set(), 0
    try:
        while True:
            while len(running) < batch:
                number += 1
                running.add(str(number))
                long = TOKENS if number > batch else 4 + number * TOKENS // batch  # so that they do not end together
                params = SamplingParams(max_tokens=long, ignore_eos=True, temperature=1, seed=number, detokenize=False)
                llm.llm_engine.add_request(str(number), {"prompt_token_ids": next(left)}, params)
            running -= {output.request_id for output in llm.llm_engine.step() if output.finished}
            yield number
    finally:
        llm.llm_engine.abort_request(list(running), internal=False)
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()


def table(lines: list[dict[str, Any]]) -> str:
    head = ("model", "batch", "bound, mnats", "price", "KL measured, mnats", "rows", "of the bound", "experts kept")
    rows = [(*head, "shadow steps"), ("---",) * (len(head) + 1)]
    for one in sorted(lines, key=lambda one: (MODELS.index(one["family"]), one["batch"], -one["max_kl"])):
        shadows = f"{one['shadows']}{'' if one['settled'] else ' (not settled)'}"
        asked = (f"`{one['family']}`", f"{one['batch']}", f"{1000 * one['max_kl']:g}")
        if one["price"]:
            low, high = (1000 * edge for edge in one["interval"])
            kl = (f"{one['price']:.3g}", f"{1000 * one['kl']:.3g} [{low:.3g}, {high:.3g}]", f"{one['rows']:,.0f}")
            rows.append((*asked, *kl, f"{one['kl'] / one['max_kl']:.2f}", f"{100 * one['kept']:.0f} %", shadows))
        else:
            rows.append((*asked, "exact", "0", "", "0", "100 %", shadows))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
