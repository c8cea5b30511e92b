"""`lynx-moe tune`: for each batch size the cheapest setting that holds a bound, on the engine that will serve.

Chosen on the documents of split "tune", verified on those of "test". A record is a JSONL file: a line of settings, one
that identifies the model, a line for each setting, size and split that was measured, and the choices. A run that was
interrupted goes on behind its last batch; what it chooses follows from the lines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lynx_moe.control.sampling import bucket
from lynx_moe.control.tuned import EXACT, Tuned
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.served import Served
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared.documents import Batch, batches
from lynx_moe.lab.shared.engine import import_vllm, in_own_process
from lynx_moe.lab.shared.pieces import Pieces
from lynx_moe.lab.tune.search import search, verified

Line = dict[str, Any]
CHOSEN_ON, VERIFIED_ON = "tune", "test"
KIND, MODEL, CHOICE = "tune", "model", "choice"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """decode: what is decoded, and by which sizes, as `lynx-moe fidelity` takes it. policies: spec strings; a price
    that is left open is sought. max_kl: the bound, in nats."""

    decode: fidelity.Settings
    policies: tuple[str, ...]
    max_kl: float

    def __post_init__(self) -> None:
        if not 0 < self.max_kl < float("inf"):
            raise ValueError(f"--max-kl {self.max_kl} must be a number of nats above 0, such as 0.01")
        lines.specs_of(self.policies)
        sizes = self.decode.batch_sizes
        if len({bucket(size) for size in sizes}) < len(sizes):
            same = ", ".join(f"{size} ({bucket(size)})" for size in sizes)
            raise ValueError(f"--concurrency {same}: name one size of each group, as one setting serves them all")


def measure(
    settings: Settings,
    path: Path,
    advance: Callable[[str], None] = print,
    max_gib: float | None = None,
    engine_args: Mapping[str, Any] | None = None,
) -> Line:
    """Measures what the record at `path` lacks, in a process of its own, and returns the whole of it. engine_args: for
    `vllm.LLM`.

    Raises ValueError where vLLM is missing or refuses the model, for a bad policy or setting, for data that cannot be
    read or fill no batch, and for a record of other settings.
    """
    import_vllm()
    return in_own_process(_measure, settings, path, advance, max_gib, dict(engine_args or {}))


def tuned(whole: Line) -> Tuned:
    """What a finished record has chosen, for a server."""
    (model,) = (line["model"] for line in whole["results"] if line["kind"] == MODEL)
    chosen = [line for line in whole["results"] if line["kind"] == CHOICE]
    settings, environment = whole["settings"], whole["environment"]
    measured = {
        line["batch"]: {
            name: line[VERIFIED_ON][name] for name in ("kl", "kl_interval", "num_tokens", "before", "after")
        }
        for line in chosen
        if line[VERIFIED_ON]
    }
    about = {
        "data": settings["data"],
        "date": environment["date"],
        "versions": environment["versions"],
        "engine_args": settings["engine_args"],
        "verified": measured,
    }
    batches = {line["batch"]: line["policy"] for line in chosen}
    return Tuned(model=model, max_kl=settings["max_kl"], batches=batches, about=about)


def _measure(
    settings: Settings,
    path: Path,
    advance: Callable[[str], None],
    max_gib: float | None,
    engine_args: dict[str, Any],
) -> Line:
    given = {"policies": list(settings.policies), "max_kl": settings.max_kl, "engine_args": engine_args}
    whole = lines.begin(path, KIND, asdict(settings.decode) | given)
    run = Measuring(settings, path, whole, advance, max_gib, engine_args)
    done = {line["concurrency"] for line in whole["results"] if line["kind"] == CHOICE}
    for size in settings.decode.batch_sizes:
        if size not in done:
            whole["results"].append(run.choice(size))
            lines.save(whole, path)
    return whole


class Measuring:
    """One run: the engine, opened when something is missing, and the documents."""

    def __init__(
        self,
        settings: Settings,
        path: Path,
        whole: Line,
        advance: Callable[[str], None],
        max_gib: float | None,
        engine_args: dict[str, Any],
    ) -> None:
        self.settings, self.path, self.whole = settings, path, whole
        self.advance, self.max_gib, self.engine_args = advance, max_gib, engine_args
        self.served: Served | None = None
        self.cuts: dict[tuple[int, str], list[Batch]] = {}
        for split in (CHOSEN_ON, VERIFIED_ON):
            found = fidelity.documents(replace(settings.decode, split=split))
            for size in settings.decode.batch_sizes:
                cut = self.cuts[size, split] = batches(found, size, "mixed", settings.decode.seed)
                if not cut:
                    raise ValueError(
                        f"{settings.decode.data} has {len(found)} documents in split {split!r}, too few for a batch of "
                        f"{size}; give more data, raise --sequences, or lower --concurrency"
                    )

    def choice(self, size: int) -> Line:
        """The line of one batch size."""
        most = self.settings.max_kl
        found = search(self.settings.policies, most, partial(self.figures, size, CHOSEN_ON))
        best = verified(found, most, partial(self.figures, size, VERIFIED_ON))
        line = {"kind": CHOICE, "concurrency": size, "batch": bucket(size), "candidates": len(found)}
        if best is None:
            return line | {"policy": EXACT, CHOSEN_ON: None, VERIFIED_ON: None}
        return line | {"policy": best[0], CHOSEN_ON: _short(found[best[0]]), VERIFIED_ON: _short(best[1])}

    def figures(self, size: int, split: str, specs: Sequence[str]) -> dict[str, Line]:
        """What fidelity says of these settings at one size, on one split; it decodes what the record lacks."""
        part = {"kind": KIND, "concurrency": size, "split": split}
        known = {line["policy"]: line for line in self.whole["results"] if part.items() <= line.items()}
        missing = [spec for spec in specs if spec not in known]
        if missing:
            decoder, cut = self._open(), self.cuts[size, split]
            decoder.policies = missing
            what = "choose" if split == CHOSEN_ON else "verify"
            self.advance(f"batches of {size}, documents to {what} on: {' '.join(missing)}")
            pieces = Pieces(self.path, part)
            fidelity.decode_missing(decoder, cut, missing, "own", pieces, self.advance)
            for spec in missing:
                each = [pieces.find(spec, place) or {} for place in range(len(cut))]
                known[spec] = part | {"policy": spec} | fidelity.of_pieces(cut, each) | fidelity.mean_loads(cut, each)
                self.whole["results"].append(known[spec])
                self.advance(_told(known[spec]))
            lines.save(self.whole, self.path)
            pieces.forget(missing)
        return {spec: known[spec] for spec in specs}

    def _open(self) -> Served:
        if self.served is None:
            from lynx_moe.engines.vllm.launch.tuned import identity

            self.advance("loading the model")
            self.served = Served(self.settings.decode, self.settings.policies, self.engine_args)
            self.served.check([("own", cut) for cut in self.cuts.values()], self.max_gib)
            if not any(line["kind"] == MODEL for line in self.whole["results"]):
                self.whole["results"].append({"kind": MODEL, "model": identity(self.served.llm.model_config)})
            lines.save(self.whole, self.path)
        return self.served


def _told(line: Line) -> str:
    """Of a setting, while the search goes on."""
    low, high = (1000 * edge for edge in line["kl_interval"])
    kl = f"{1000 * line['kl']:.3g} mnats [{low:.3g}, {high:.3g}]"
    return f"  {line['policy']}: {kl}, experts {line['before']:.1f} → {line['after']:.1f}"


def _short(line: Line) -> Line:
    """What tables and the file tell of a setting."""
    names = ("kl", "kl_interval", "agree", "num_sequences", "num_tokens", "before", "after")
    return {name: line[name] for name in names}
