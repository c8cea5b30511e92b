"""`lynx-moe fidelity`: how far policies move a model's next-token distribution, token by token.

A record is a JSONL file: a line of settings, then a line per batch size, mix of groups, cache and policy. It is written
after every batch size and mix, and what there is of one is kept beside it (`pieces`): an interrupted run goes on behind
its last batch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lynx_moe.engines.transformers import Run, apply
from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.lockstep import CACHES, Effect, decode
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared.documents import MIXES, SPLITS, Batch, Document, batches, from_file, from_testbed
from lynx_moe.lab.shared.intervals import weighted_mean
from lynx_moe.lab.shared.models import unloadable
from lynx_moe.lab.shared.pieces import Pieces
from lynx_moe.lab.shared.progress import Progress

Line = dict[str, Any]
FULLEST = ("fullest_before", "fullest_after")  # of experts on ranks


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
    settings: Settings,
    policies: Sequence[str],
    path: Path,
    advance: Callable[[str], None] = lambda message: None,
    max_gib: float | None = None,
    opener: "Callable[[Settings, Sequence[str]], Decoder] | None" = None,
    header: Line | None = None,
) -> Line:
    """Measures what the record at `path` lacks, and returns the whole of it. max_gib: memory that may be used beside
    the model; None: most of what is free. opener: makes what decodes; None: transformers. header: settings of that,
    for the record.

    Raises ValueError for a bad policy or setting, a model without MoE layers, data that cannot be read, batches that
    take too much memory, and a record of other settings.
    """
    specs = lines.specs_of(policies)
    whole = lines.begin(path, "fidelity", asdict(settings) | {"policies": specs} | (header or {}))
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
    decoder = (opener or Local)(settings, specs)
    decoder.check([(part[2], cut) for part, cut in cuts.items()], max_gib)
    lines.save(whole, path)
    for number, ((batch_size, mix, cache), cut) in enumerate(cuts.items(), 1):
        advance(f"{number} of {len(cuts)}: batch {batch_size}, {mix} group{'s' * (mix == 'mixed')}, {cache} cache")
        part = {"kind": "fidelity", "batch_size": batch_size, "mix": mix, "cache": cache}
        pieces = Pieces(path, part)
        decode_missing(decoder, cut, specs, cache, pieces, advance)
        for spec, policy in zip(specs, decoder.policies, strict=True):
            each = [pieces.find(spec, place) or {} for place in range(len(cut))]
            named = part | {"policy": spec, "spec": policy}
            whole["results"].append(named | of_pieces(cut, each) | mean_loads(cut, each))
        lines.save(whole, path)
        pieces.forget(specs)
    return whole


def check_memory(model: Any, cuts: Iterable[tuple[str, Sequence[Batch]]], num_runs: int, max_gib: float | None) -> None:
    """Raises ValueError if a cell would take more than may be used: its batches, by the kind of cache."""
    limit, sizes = machine.allowed(next(model.parameters()).device, max_gib), memory.measured(model)
    for cache, cut in cuts:
        caches = 1 + num_runs * (2 if cache == "exact" else 1)  # of the exact run, of policies, and copies for a step
        what = f"batch {len(cut[0].members)} under {num_runs} {'policies' if num_runs > 1 else 'policy'}"
        lower = f"{memory.LOWER}{', name fewer --policies' if num_runs > 1 else ''}, {memory.RAISE}"
        machine.refuse_above(limit, sizes.need(memory.largest(cut, sizes), caches), what, lower)


class Decoder(Protocol):
    """What decodes batches along their true continuation. policies: full specs, as this model has them."""

    policies: list[str]

    def check(self, cuts: Iterable[tuple[str, Sequence[Batch]]], max_gib: float | None) -> None:
        """Raises ValueError if a cell would take more memory than may be used."""

    def decode(self, batch: Batch, cache: str, tick: Callable[[], None]) -> list[Line]:
        """A piece per policy: `means` of its effects, and its loads. `tick` is called for every step."""


class Local:
    """A `Decoder` on transformers, in this process."""

    def __init__(self, settings: Settings, specs: Sequence[str], ranks: int = 1) -> None:
        self.model, self.runs = open_model(settings, specs, ranks)
        self.policies = [run.policy.spec for run in self.runs]

    def check(self, cuts: Iterable[tuple[str, Sequence[Batch]]], max_gib: float | None) -> None:
        check_memory(self.model, cuts, len(self.runs), max_gib)

    def decode(self, batch: Batch, cache: str, tick: Callable[[], None]) -> list[Line]:
        for run in self.runs:
            run.reset_stats()
        effects = decode(self.model, batch, self.runs, cache, tick)
        return [means(effect) | loads(run) for run, effect in zip(self.runs, effects, strict=True)]


def decode_missing(
    decoder: Decoder,
    cut: Sequence[Batch],
    specs: Sequence[str],
    cache: str,
    pieces: Pieces,
    advance: Callable[[str], None],
) -> None:
    """Decodes the batches that `pieces` lack, and adds them."""
    missing = [place for place in range(len(cut)) if not pieces.has(specs, place)]
    progress = Progress(advance, sum(cut[place].num_steps for place in missing))
    for place in missing:
        pieces.add(place, dict(zip(specs, decoder.decode(cut[place], cache, progress.step), strict=True)))


def means(effect: Effect, names: Sequence[str] = Effect._fields) -> Line:
    """Each sequence's means over its steps, by name."""
    return {name: getattr(effect, name).mean(0).tolist() for name in names}


def summary(cut: Sequence[Batch], effects: Sequence[Effect], names: Sequence[str] = Effect._fields) -> Line:
    """`of_pieces` of these effects."""
    return of_pieces(cut, [means(effect, names) for effect in effects], names)


def of_pieces(cut: Sequence[Batch], pieces: Sequence[Line], names: Sequence[str] = Effect._fields) -> Line:
    """Means over tokens of the named figures with 95 % intervals (bootstrap over sequences), and each sequence's means
    with its group; from a piece per batch, each with a list per name."""
    found: Line = {"num_sequences": sum(len(batch.members) for batch in cut)}
    steps = [batch.num_steps for batch in cut for _ in batch.members]
    found["num_tokens"] = sum(steps)
    found["groups"] = [member.group for batch in cut for member in batch.members]
    for name in names:
        values = [value for piece in pieces for value in piece[name]]
        found[name] = sum(value * count for value, count in zip(values, steps, strict=True)) / sum(steps)
        found[f"{name}_interval"] = weighted_mean(values, steps)
        found[f"{name}_by_sequence"] = [round(value, 7) for value in values]
    found["steps_by_sequence"] = steps
    return found


def mean_loads(cut: Sequence[Batch], pieces: Sequence[Line]) -> Line:
    """What `loads` says of the pieces, means over steps."""
    steps = torch.tensor([batch.num_steps for batch in cut], dtype=torch.float64)
    found: Line = {"num_experts": pieces[0]["num_experts"]}
    told = [name for name in (*FULLEST, "read") if name in pieces[0]]
    for name in ("before", "after", *told, "before_by_layer", "after_by_layer"):
        values = torch.tensor([piece[name] for piece in pieces], dtype=torch.float64)
        found[name] = (torch.tensordot(steps, values, 1) / steps.sum()).tolist()
    return found


def documents(settings: Settings) -> list[Document]:
    """What `settings.data` names, as the model's tokenizer cuts it; no weights are loaded. Raises ValueError where it
    holds nothing of use, and where there is no tokenizer."""
    tokenizer = _loaded("AutoTokenizer", settings)
    if settings.data == "testbed":
        return from_testbed(tokenizer, settings.num_sequences, settings.seed, settings.split)
    size = (settings.num_sequences, settings.prefix, settings.steps)
    return from_file(Path(settings.data), tokenizer, *size, settings.split)


def open_model(settings: Settings, specs: Sequence[str], ranks: int = 1) -> tuple[Any, list[Run]]:
    """The model, and a run of each policy, not installed. Raises ValueError as `measure` does."""
    model = _loaded("AutoModelForCausalLM", settings, dtype=settings.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), [apply(model, spec, ranks=ranks) for spec in specs]


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
    num_experts = run.layers[0].spec.num_experts
    return {"before": stats.mean_before, "after": stats.mean_after, **layers, "num_experts": num_experts}
