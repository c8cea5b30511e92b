"""README.md of a model folder, drawn from its `scores.json` and nothing else."""

from typing import Any

from lynx_moe.testbed.model.families import TRAINED, Family
from lynx_moe.testbed.report.interval import wilson

PAGE = """\
---
license: apache-2.0
library_name: transformers
---

# {name}: a small trained {kind}

{about}
Remake it with `python -m lynx_moe.testbed train {name}`, and this page with `python -m lynx_moe.testbed card {name}`.
The recipe and the sources of the text are in `docs/reference/testbed.md`.

## Training

{tokens:.1f} M tokens ({steps:,} steps of {batch_rows} rows of {row_length}), seed {seed}, {minutes:.0f} minutes of
one core of an {machine}. {balancing}.

Trained in float32, saved in bfloat16: mean exact match {before:.1f} % before and {mean:.1f} % after rounding, on the
same exercises.

## Exact match on held-out exercises

Greedy decoding in float32; mean over tasks **{mean:.1f} %**. Prompts whose SHA-256 starts with a byte divisible by 16
are never trained on. Wilson's 95 % intervals.

| task | exact match, % | 95 % interval | n |
|---|---:|---:|---:|
{exact_rows}

## Bits per byte on held-out text

| text | bits per byte | standard error | n |
|---|---:|---:|---:|
{text_rows}

{routers}{mtp}SHA-256 of `model.safetensors`: `{sha256}`
"""
MTP = """\
## A layer that drafts

`mtp.safetensors` has a multi-token-prediction layer of {parameters:.2f} M parameters, for vLLM's method `mtp`. It was
trained on top of the frozen model by `python -m lynx_moe.testbed mtp`, to say what the model says next: {tokens:.1f} M
tokens ({steps:,} steps), {minutes:.0f} minutes of one core of an {machine}. On {num:,} tokens of held-out
answers its first choice is the model's in {agree} % at the first, second and third token of a draft,
the tokens before being the right answer's.

SHA-256 of `mtp.safetensors`: `{sha256}`

"""
ROUTED = """\
`{model_class}` with {parameters:.2f} M parameters: {num_layers} layers of hidden width {hidden_size},
{num_routers} of them with {num_experts} experts of width {expert_width}, {top_k} per token. It solves exercises with
exact answers, written as `sort: 42 7 19 ->`, and is made for measuring what changed routing does to a model. It is of
no use for anything else.
"""
DENSE = """\
`{model_class}` with {parameters:.2f} M parameters: {num_layers} dense layers of hidden width {hidden_size}. It drafts
for the mixtures of experts beside it, with the tokenizer that all of them have, and learnt their exercises. It is of no
use for anything else.
"""
ROUTERS = """\
## Routers on decode tokens

Means over layers and {num_tokens:,} answer tokens of all tasks: the tokens that a server steps through.

- Share of the first choice in the scores of all experts: {top1_mass:.2f}; of all {top_k} choices: {chosen_mass:.2f}
- Renormalised weight by rank: {weights}
- Entropy of the load (1 is even): {load_entropy:.3f}; experts with less than a tenth of an even load: {unused:.1f}

| decode batch | {batch_sizes} |
|---|{alignment}
| distinct experts | {distinct} |
| uniform draws | {uniform} |

At batch 16 that is {part:.0f} % of the experts; for Qwen3-30B-A3B, 48.8 of 128 (38 %) is published, where uniform draws
would load 82.4.

## What the routing is worth

Exact match over {denying_n} exercises of all tasks while the routers pass over some experts, at every token:

| | exact match, % |
|---|---:|
{denying_rows}

"""


def render(name: str, scores: dict[str, Any]) -> str:
    """The model card of `name` in Markdown."""
    family, training = TRAINED[name], scores["training"]
    config = family.build_config()
    facts = {
        "kind": "mixture of experts" if family.gate else "dense model",
        "model_class": family.model_class.__name__,
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "balancing": _balancing(family),
        "batch_rows": family.batch_rows,
        "row_length": family.row_length,
        "parameters": scores["parameters"] / 1e6,
        "steps": training["steps"],
        "tokens": training["tokens"] / 1e6,
        "seed": training["seed"],
        "minutes": training["seconds"] / 60,
        "machine": training["machine"],
        "before": _mean(scores["exact_float32"]),
        "mean": _mean(scores["exact"]),
        "exact_rows": "\n".join(_exact_row(task, row["right"], row["n"]) for task, row in scores["exact"].items()),
        "text_rows": "\n".join(
            f"| {kind} | {row['bits_per_byte']:.3f} | {row['se']:.3f} | {row['n']} |"
            for kind, row in scores["text"].items()
        ),
        "sha256": scores["sha256"],
        "mtp": _mtp(scores["mtp"]) if "mtp" in scores else "",
    }
    if not family.gate:
        return PAGE.format(name=name, about=DENSE.format(**facts), routers="", **facts)
    facts |= _routing(config, scores)
    return PAGE.format(name=name, about=ROUTED.format(**facts), routers=ROUTERS.format(**facts), **facts)


def _routing(config: Any, scores: dict[str, Any]) -> dict[str, Any]:
    router = scores["router"]
    return {
        "num_routers": router["num_layers"],
        "num_experts": config.num_local_experts,
        "expert_width": getattr(config, "moe_intermediate_size", config.intermediate_size),
        "top_k": config.num_experts_per_tok,
        "num_tokens": router["num_tokens"],
        "top1_mass": router["top1_mass"],
        "weights": ", ".join(f"{weight:.3f}" for weight in router["weights"]),
        "chosen_mass": router["chosen_mass"],
        "load_entropy": router["load_entropy"],
        "unused": router["unused"],
        "batch_sizes": " | ".join(router["distinct"]),
        "alignment": "---:|" * len(router["distinct"]),
        "distinct": " | ".join(f"{value:.1f}" for value in router["distinct"].values()),
        "uniform": " | ".join(f"{value:.1f}" for value in router["uniform"].values()),
        "part": 100 * router["distinct"]["16"] / router["num_experts"],
        "denying_n": scores["denying_n"],
        "denying_rows": "\n".join(f"| {change} | {100 * x:.1f} |" for change, x in scores["denying"].items()),
    }


def _balancing(family: Family) -> str:
    if not family.gate:
        return "Nothing is routed"
    if family.balance_coef:
        return f"Load-balancing loss with weight {family.balance_coef:g} in each layer"
    if family.bias_rate:
        return f"Load balanced by a selection bias that moves by {family.bias_rate:g} a step"
    return "No load balancing, for comparisons: the weights are not shipped"


def _mtp(found: dict[str, Any]) -> str:
    training = found["training"]
    return MTP.format(
        parameters=found["parameters"] / 1e6,
        tokens=training["tokens"] / 1e6,
        steps=training["steps"],
        minutes=training["seconds"] / 60,
        machine=training["machine"],
        num=found["tokens"][0],
        agree=", ".join(f"{100 * share:.1f}" for share in found["agree"]),
        sha256=found["sha256"],
    )


def _mean(exact: dict[str, dict[str, int]]) -> float:
    return 100 * sum(row["right"] / row["n"] for row in exact.values()) / len(exact)


def _exact_row(task: str, right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"| {task} | {100 * right / n:.1f} | {100 * low:.1f} to {100 * high:.1f} | {n} |"
