"""README.md of the model *text*, drawn from its `scores.json` and nothing else."""

from collections import defaultdict
from typing import Any

from lynx_moe.testbed.text.recipe import TEXT

# Means over 26 layers of published routes.
REAL_NAME, REAL_SHARES, REAL_MASS = "DeepSeek-V2-Lite", (0.33, 0.20, 0.15, 0.12, 0.11, 0.09), 0.37

PAGE = """\
---
license: apache-2.0
library_name: transformers
---

# {name}: a mixture of experts trained on prose and code

`{model_class}` with {parameters:.1f} M parameters, of which a token passes through {active:.1f} M: {num_layers} layers
of hidden width {hidden_size} with {num_experts} experts of width {expert_width}, {top_k} per token. It has a vocabulary
of its own ({vocab_size:,} entries) and reads up to {row_length} tokens. It is made for measuring what changed routing
does to a model that is unsure of its next token, as language models are. It is of no use for anything else, and it
solves no exercises.

Remake it with `lynx-moe testbed text train`, and this page with `lynx-moe testbed text card`. The recipe is in
`docs/reference/testbed.md`.

## Training

{tokens:.1f} M tokens ({steps:,} steps of {batch_rows} rows of {row_length}), half prose and half code, seed {seed},
{hours:.1f} processor hours{workers} of an {machine}. The learning rate {fell}.
Load-balancing loss with weight {balance:g} in each layer. Trained in float32, saved in bfloat16.

## Loss on held-out documents

The first {row_length} tokens of each document of the split `test`. Whether a document is held out is decided by its
SHA-256 ([the rule](#held-out-documents)). Intervals of 95 % over documents.

| text | nats per token | 95 % interval | perplexity | bits per byte | documents | tokens | before rounding |
|---|---:|---:|---:|---:|---:|---:|---:|
{text_rows}

## Routers

Means over layers and {num_tokens:,} tokens of held-out documents.

| rank | {ranks} |
|---|{rank_alignment}
| share of the chosen experts' weight | {weights} |
| {real_name}'s | {real} |

- All {top_k} choices hold {chosen_mass:.2f} of the softmax over all experts, the first holds {top1_mass:.2f} (all
  {real_k} of {real_name}: {real_mass:.2f}).
- Entropy of the load (1 is even): {load_entropy:.3f}; experts with less than a tenth of an even load: {unused:.1f};
  never chosen: {dead:.1f}.

| decode batch | {batch_sizes} |
|---|{alignment}
| distinct experts | {distinct} |
| uniform draws | {uniform} |

| layer | {layers} |
|---|{layer_alignment}
| entropy of the load | {load_by_layer} |
| entropy of a token's softmax | {router_by_layer} |
| first choice's share | {first_by_layer} |

Entropies are divided by the logarithm of the number of experts.

## Sources

Packages that are fetched by name and read, or that a normal installation holds; no text is taken from anywhere else.

| source | from | licence | kind | documents | MB |
|---|---|---|---|---:|---:|
{source_rows}

## Held-out documents

`lynx_moe.testbed.text.documents.split_of(document)`: the first byte of the SHA-256 of the whole document, if divisible
by 16, holds it out; the second byte's remainder by 4 says for what: 0 and 2 `test`, 1 `tune`, 3 `calibrate`. These are
the splits of every command here. Paragraphs of 40 and more characters that an earlier document had are left out before,
so none is on both sides. `held_out.jsonl` holds some of each split that are not long, with
their sources; `--data` of the commands that measure takes it.

SHA-256 of `model.safetensors`: `{sha256}`
"""


def render(name: str, scores: dict[str, Any]) -> str:
    """The card in Markdown."""
    training, router, layers = scores["training"], scores["router"], scores["layers"]
    shape = scores["shape"]
    top_k = shape["num_experts_per_tok"]
    shares = [f"{share:.2f}" for share in REAL_SHARES]
    facts = {
        "model_class": TEXT.model_class.__name__,
        "parameters": scores["parameters"] / 1e6,
        "active": scores["active"] / 1e6,
        "num_layers": shape["num_hidden_layers"],
        "hidden_size": shape["hidden_size"],
        "num_experts": shape["num_experts"],
        "expert_width": shape["moe_intermediate_size"],
        "top_k": top_k,
        "vocab_size": shape["vocab_size"],
        "row_length": TEXT.row_length,
        "batch_rows": TEXT.batch_rows,
        "balance": TEXT.balance_coef,
        "tokens": training["tokens"] / 1e6,
        "steps": training["steps"],
        "fell": f"fell over the last {training['decay_steps']:,} steps" if training["decay_steps"] else "never fell",
        "seed": training["seed"],
        "hours": training["seconds"] * training["workers"] / 3600,
        "workers": f" ({training['workers']} process{'es' * (training['workers'] > 1)} of one thread)",
        "machine": training["machine"],
        "text_rows": "\n".join(
            _text_row(kind, row, scores["text_float32"][kind]) for kind, row in scores["text"].items()
        ),
        "num_tokens": router["num_tokens"],
        "ranks": " | ".join(str(rank) for rank in range(1, top_k + 1)),
        "rank_alignment": "---:|" * top_k,
        "weights": " | ".join(f"{weight:.2f}" for weight in router["weights"]),
        "real": " | ".join((shares + [""] * top_k)[:top_k]),
        "real_name": REAL_NAME,
        "real_k": len(shares),
        "real_mass": REAL_MASS,
        "chosen_mass": router["chosen_mass"],
        "top1_mass": router["top1_mass"],
        "load_entropy": router["load_entropy"],
        "unused": router["unused"],
        "dead": sum(layer["dead"] for layer in layers) / len(layers),
        "batch_sizes": " | ".join(router["distinct"]),
        "alignment": "---:|" * len(router["distinct"]),
        "distinct": " | ".join(f"{value:.1f}" for value in router["distinct"].values()),
        "uniform": " | ".join(f"{value:.1f}" for value in router["uniform"].values()),
        "layers": " | ".join(str(number) for number in range(len(layers))),
        "layer_alignment": "---:|" * len(layers),
        "load_by_layer": _by_layer(layers, "load_entropy"),
        "router_by_layer": _by_layer(layers, "router_entropy"),
        "first_by_layer": _by_layer(layers, "first_share"),
        "source_rows": "\n".join(_source_rows(scores["sources"])),
        "sha256": scores["sha256"],
    }
    return PAGE.format(name=name, **facts)


def _by_layer(layers: list[dict[str, float]], fact: str) -> str:
    return " | ".join(f"{layer[fact]:.2f}" for layer in layers)


def _text_row(kind: str, row: dict[str, Any], before: dict[str, Any]) -> str:
    low, high = row["interval"]
    cells = (kind, f"{row['nats']:.3f}", f"{low:.3f} to {high:.3f}", f"{row['perplexity']:.2f}")
    more = (f"{row['bits_per_byte']:.3f}", str(row["documents"]), f"{row['tokens']:,}", f"{before['nats']:.3f}")
    return f"| {' | '.join((*cells, *more))} |"


def _source_rows(sources: list[dict[str, Any]]) -> list[str]:
    """A line for each source, and one for each kind's sum."""
    rows = []
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    where = {"debian": "Debian 12", "pypi": "PyPI", "python": "Python", "installed": "PyPI"}
    for source in sources:
        counts = (source["documents"], source["bytes"])
        sums[source["kind"]] = [a + b for a, b in zip(sums[source["kind"]], counts, strict=True)]
        name = f"`{source['name']}`"
        rows.append(_row(name, where[source["via"]], source["licence"], source["kind"], *counts))
    return rows + [_row("all", "", "", kind, *counts) for kind, counts in sums.items()]


def _row(name: str, where: str, licence: str, kind: str, documents: int, size: int) -> str:
    return f"| {name} | {where} | {licence} | {kind} | {documents:,} | {size / 1e6:.1f} |"
