"""The parts of a profile in turn; each is saved when it is done, so a profile that was stopped goes on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.measure import documents, open_model
from lynx_moe.lab.profile.check import MOST_CHECKED, candidates, check
from lynx_moe.lab.profile.measures.routing import routing
from lynx_moe.lab.profile.measures.sensitivity import Session, by_layer, confidence, experts, phases, ranks
from lynx_moe.lab.profile.measures.settings import Settings
from lynx_moe.lab.profile.measures.step_time import step_time
from lynx_moe.lab.shared import lines
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared.documents import Batch, batches

Line = dict[str, Any]
Maker = Callable[[Session, list[Line]], list[Line]]


def measure(settings: Settings, path: Path, advance: Callable[[str], None] = lambda message: None) -> Line:
    """Measures what the record at `path` lacks, and returns the whole of it.

    Raises ValueError for a model without MoE layers or with no expert to spare, data that cannot be read or fill no
    batch, and a record of other settings.
    """
    whole = lines.begin(path, "profile", asdict(settings))
    if not missing(whole):
        return whole
    session = open_session(settings, advance)
    while parts := missing(whole):
        advance(f"{parts[0]}{f', then {len(parts) - 1} more' if parts[1:] else ''}")
        name, _, layer = parts[0].partition(" ")
        found = (
            experts(session, int(layer), part(whole, "routing")[0]["use"][int(layer)])
            if name == "experts"
            else PARTS[name](session, whole["results"])
        )
        whole["results"] += [{"part": parts[0], **line} for line in found]
        lines.save(whole, path)
    return whole


def open_session(settings: Settings, advance: Callable[[str], None]) -> Session:
    """The model and its batches, which are read first. Raises ValueError as `measure` does, and where they would take
    more memory than there is."""
    cut = batches(documents(settings.reading()), settings.batch_size, "mixed", settings.seed)
    cut = [batch for batch in cut if batch.num_steps > 0]
    if not cut:
        raise ValueError(
            f"{settings.data} fills no batch of {settings.batch_size} sequences; give more data, or lower "
            "--batch-size, --prefix or --steps"
        )
    advance("loading the model")
    model, (run,) = open_model(settings.reading(), ["vanilla"])
    for layer in run.layers:
        if layer.spec.num_experts == layer.spec.top_k:
            raise ValueError(f"every token uses all {layer.spec.top_k} experts of {layer.name}: no choice to profile")
    _check_memory(model, cut)
    return Session(settings=settings, model=model, batches=cut)


def _check_memory(model: Any, cut: Sequence[Batch]) -> None:
    """Raises ValueError if the largest batch would not fit: its tokens in one forward with all their logits, or the
    caches of the policies that are checked, whichever is more."""
    sizes = memory.measured(model)
    batch = memory.largest(cut, sizes)
    tokens = sum(len(member.prefix) + batch.num_steps for member in batch.members)
    parts = sizes.need(batch, 1 + MOST_CHECKED)
    parts = {name: max(size, sizes.need_of_rows(tokens, tokens).get(name, 0)) for name, size in parts.items()}
    what, lower = f"batch {len(batch.members)}", "lower --batch-size, --prefix or --steps, or take --dtype bfloat16"
    machine.refuse_above(machine.allowed(next(model.parameters()).device, None), parts, what, lower)


def missing(whole: Line) -> list[str]:
    """The parts that a record lacks, in the order in which they are made."""
    done = {line["part"] for line in whole["results"]}
    names = [name for name in PARTS if name != "time" or whole["settings"]["rounds"]]
    found = [name for name in names if name not in done]
    if "routing" in done:
        layers = range(part(whole, "routing")[0]["num_layers"])
        found += [f"experts {layer}" for layer in layers if f"experts {layer}" not in done]
    return found


def part(whole: Line, name: str) -> list[Line]:
    """The lines of one part; "experts" gives those of all layers."""
    return [line for line in whole["results"] if line["part"].split()[0] == name]


def _time(session: Session, _: list[Line]) -> list[Line]:
    given = session.settings
    return step_time(session.model, given.batch_size, given.rounds, given.seed)


def _check(session: Session, results: list[Line]) -> list[Line]:
    found = [line for line in results if line["part"] == "ranks"]
    return check(session, candidates(found, session.settings.tolerance))


PARTS: dict[str, Maker] = {
    "time": _time,
    "routing": lambda session, _: [routing(session.trace, session.settings.seed)],
    "phases": lambda session, _: phases(session),
    "confidence": lambda session, _: confidence(session),
    "ranks": lambda session, _: ranks(session),
    "layers": lambda session, _: by_layer(session),
    "check": _check,
}
