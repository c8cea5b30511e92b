"""`lynx-moe fidelity`: how far policies move a model's next-token distribution, token by token.

A record is a JSONL file: a line of settings, then a line per batch size, mix of groups, cache and policy. It is written
after every batch size and mix, so that an interrupted run goes on where it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.lab.fidelity.lockstep import CACHES, Effect, decode
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import MIXES, SPLITS, Batch, Document, batches, from_file, from_testbed
from lynx_moe.lab.shared.intervals import weighted_mean
from lynx_moe.lab.shared.models import unloadable
from lynx_moe.policies import make_policy

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a result besides the policy.

    data           "testbed": held-out exercises; else a file (`documents.from_file` says which).
    batch_sizes    sequences that decode together; 1: each alone.
    mixes          "one": batches of one group; "mixed": of all groups.
    caches         what a policy's steps read: "own", "exact" (`lockstep` says which is what).
    num_sequences  documents to draw from; the same ones for all batch sizes and policies.
    prefix, steps  tokens of running text that are prefilled, and that are decoded; exercises have their own lengths.
    dtype          what the weights are held in; "auto": as they were saved.
    split          which of the data: "all", or "calibrate", "tune", "test" (`documents` keeps them apart).
    trust_remote_code  True: code that comes with the model is run; None: it never is, and nobody is asked.
    """

    model: str
    data: str = "testbed"
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    mixes: tuple[str, ...] = MIXES
    caches: tuple[str, ...] = ("own",)
    num_sequences: int = 224
    prefix: int = 32
    steps: int = 32
    seed: int = 0
    dtype: str = "auto"
    split: str = "all"
    trust_remote_code: bool | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("mixes", MIXES), ("caches", CACHES), ("split", SPLITS)):
            given = (self.split,) if name == "split" else getattr(self, name)
            if not given or not set(given) <= set(allowed):
                raise ValueError(f"{name}={','.join(given)!r}: name some of {', '.join(allowed)}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch sizes {self.batch_sizes}: name some, each 1 or more")
        if max(self.batch_sizes) > self.num_sequences:
            raise ValueError(f"a batch of {max(self.batch_sizes)} needs more than {self.num_sequences} sequences")
        if min(self.prefix, self.steps) < 1:
            raise ValueError(f"prefix={self.prefix} and steps={self.steps} must be 1 or more")


def measure(
    settings: Settings, policies: Sequence[str], path: Path, advance: Callable[[str], None] = lambda message: None
) -> Line:
    """Measures what the record at `path` lacks, and returns the whole of it.

    Raises ValueError for a bad policy or setting, a model without MoE layers, data that cannot be read, and a record of
    other settings.
    """
    specs = [make_policy(policy).spec for policy in policies]
    if not specs or len(set(specs)) < len(specs):
        raise ValueError(f"name at least one policy, and each of them once; given: {', '.join(specs) or 'none'}")
    whole = lines.begin(path, "fidelity", asdict(settings) | {"policies": specs})
    done = {(line["batch_size"], line["mix"], line["cache"]) for line in whole["results"]}
    wanted = [(b, m, c) for b in settings.batch_sizes for m in settings.mixes for c in settings.caches]
    missing = [part for part in wanted if part not in done]
    if not missing:
        return whole
    found = documents(settings)
    cuts = {part: batches(found, part[0], part[1], settings.seed) for part in missing}
    for size in sorted({part[0] for part, cut in cuts.items() if not cut}):
        advance(f"no group has {size} sequences; raise --sequences, or give more data")
    cuts = {part: cut for part, cut in cuts.items() if cut}
    if not cuts and not whole["results"]:
        raise ValueError(f"{settings.data} fills no batch of {missing[0][0]}: {len(found)} sequences; give more data")
    advance("loading the model")
    model, runs = open_model(settings, specs)
    for number, ((batch_size, mix, cache), cut) in enumerate(cuts.items(), 1):
        advance(f"{number} of {len(cuts)}: batch {batch_size}, {mix} group{'s' * (mix == 'mixed')}, {cache} cache")
        for run in runs:
            run.reset_stats()
        effects = [decode(model, batch, runs, cache) for batch in cut]
        part = {"kind": "fidelity", "batch_size": batch_size, "mix": mix, "cache": cache}
        for spec, run, effect in zip(specs, runs, zip(*effects, strict=True), strict=True):
            whole["results"].append(
                part | {"policy": spec, "spec": run.policy.spec} | summary(cut, effect) | loads(run)
            )
        lines.save(whole, path)
    return whole


def summary(cut: Sequence[Batch], effects: Sequence[Effect], names: Sequence[str] = Effect._fields) -> Line:
    """Means over tokens of the effect's named parts with 95 % intervals (bootstrap over sequences), and each sequence's
    means with its group."""
    found: Line = {"num_sequences": sum(len(batch.members) for batch in cut)}
    found["num_tokens"] = sum(effect.kl.numel() for effect in effects)
    found["groups"] = [member.group for batch in cut for member in batch.members]
    steps = [batch.num_steps for batch in cut for _ in batch.members]
    for name in names:
        values = [value for effect in effects for value in getattr(effect, name).mean(0).tolist()]
        found[name] = sum(value * count for value, count in zip(values, steps, strict=True)) / sum(steps)
        found[f"{name}_interval"] = weighted_mean(values, steps)
        found[f"{name}_by_sequence"] = [round(value, 7) for value in values]
    found["steps_by_sequence"] = steps
    return found


def documents(settings: Settings) -> list[Document]:
    """What `settings.data` names, as the model's tokenizer cuts it; no weights are loaded. Raises ValueError where it
    holds nothing of use, and where there is no tokenizer."""
    tokenizer = _loaded("AutoTokenizer", settings)
    if settings.data == "testbed":
        return from_testbed(tokenizer, settings.num_sequences, settings.seed, settings.split)
    size = (settings.num_sequences, settings.prefix, settings.steps)
    return from_file(Path(settings.data), tokenizer, *size, settings.split)


def open_model(settings: Settings, specs: Sequence[str]) -> tuple[Any, list[Run]]:
    """The model, and a run of each policy, not installed. Raises ValueError as `measure` does."""
    model = _loaded("AutoModelForCausalLM", settings, dtype=settings.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), [apply(model, spec) for spec in specs]


def _loaded(kind: str, settings: Settings, **options: Any) -> Any:
    """What one of transformers' Auto classes makes of the model. Raises ValueError if it cannot."""
    import transformers

    transformers.logging.disable_progress_bar()
    trust = bool(settings.trust_remote_code)  # None would ask on the terminal
    try:
        return getattr(transformers, kind).from_pretrained(settings.model, trust_remote_code=trust, **options)
    except (OSError, ValueError) as error:
        raise ValueError(unloadable("transformers", settings.model, error)) from None


def loads(run: Run) -> Line:
    """Distinct experts per layer and step, from the ids that the experts got."""
    stats = run.stats()
    layers = {"before_by_layer": [layer.alike.mean_before for layer in stats.layers]}
    layers["after_by_layer"] = [layer.alike.mean_after for layer in stats.layers]
    return {
        "before": stats.mean_before,
        "after": stats.mean_after,
        **layers,
        "num_experts": run.layers[0].spec.num_experts,
    }
