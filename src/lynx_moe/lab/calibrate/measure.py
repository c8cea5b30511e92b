"""`lynx-moe calibrate`: the tensors that calibrated policies need, measured in one pass over documents."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lynx_moe.calibration.artifact import Artifact, Provenance, save
from lynx_moe.engines.transformers import apply
from lynx_moe.engines.transformers.experts import HELD, Collector
from lynx_moe.engines.transformers.sensitivity import Sensitivity
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity import memory
from lynx_moe.lab.fidelity.lockstep import fewest_logits, left_padded, positions
from lynx_moe.lab.shared import memory as machine
from lynx_moe.lab.shared import record
from lynx_moe.lab.shared.documents import Document
from lynx_moe.policies.contract.gains import of_layer

TOGETHER = 16
WHOLE = " by document"


def calibrate(
    settings: fidelity.Settings,
    path: Path,
    measure: str = "frobenius",
    advance: Callable[[str], None] = lambda message: None,
    max_gib: float | None = None,
    num_backwards: int = 0,
) -> Artifact:
    """Measures all tokens of the documents, prompts and continuations, and writes the file. max_gib: memory that may be
    used beside the model; None: most of what is free. num_backwards: so many of the documents are run backwards too,
    for `sensitivity`.

    Raises ValueError for data that cannot be read, exercises that are kept for testing, a model without MoE layers,
    one whose experts cannot be called one by one, and documents that take too much memory.
    """
    if settings.data == "testbed" and settings.split != "calibrate":
        raise ValueError(f"split {settings.split!r} of the testbed is tested on; calibrate with split 'calibrate'")
    found = sorted(fidelity.documents(settings), key=lambda one: len(one.prefix) + len(one.rest))
    advance("loading the model")
    model, _ = fidelity.open_model(settings, [])
    collector = Collector(model)
    device = next(model.parameters()).device
    size = documents_at_once(model, found, machine.allowed(device, max_gib))
    for start in range(0, len(found), size):
        rows = [one.prefix + one.rest for one in found[start : start + size]]
        ids_BL, mask_BL = (part.to(device) for part in left_padded(rows))
        collector.add(ids_BL, mask_BL, position_ids=positions(mask_BL), **fewest_logits(model))
        advance(f"{start + len(rows)} of {len(found)} documents, {collector.num_tokens} tokens")
    about = Provenance(
        model=settings.model,
        data=source(settings),
        num_tokens=collector.num_tokens,
        seed=settings.seed,
        versions=record.environment()["versions"],
    )
    layers = collector.layers(measure)
    if num_backwards:
        told = sensitivities(model, found, num_backwards, machine.allowed(device, max_gib), advance)
        layers = {number: layer | told[number] for number, layer in layers.items()}
    artifact = Artifact(layers=layers, provenance=about)
    save(artifact, path)
    return artifact


def documents_at_once(model: Any, found: Sequence[Document], limit: int | None) -> int:
    """How many documents share a forward: TOGETHER, or as many as fit. Raises ValueError if not even the longest one
    does."""
    width = max(len(one.prefix) + len(one.rest) for one in found)
    spec, hidden = apply(model, "vanilla").layers[0].spec, model.config.get_text_config().hidden_size
    sizes = memory.measured(model)

    def need(num: int) -> dict[str, int]:
        of_forward = sizes.need_of_rows(num, num * width)
        return of_forward | {"statistics": 3 * 8 * min(HELD, num * width * spec.num_experts * hidden)}

    machine.refuse_above(limit, need(1), f"a document of {width} tokens", f"lower --prefix or --steps, {memory.RAISE}")
    fits = (num for num in range(TOGETHER, 1, -1) if limit is None or sum(need(num).values()) <= limit)
    return next(fits, 1)


def sensitivities(
    model: Any, found: Sequence[Document], num: int, limit: int | None, advance: Callable[[str], None]
) -> dict[int, dict[str, Tensor]]:
    """Of so many of the documents, evenly over their lengths. Raises ValueError if not even one fits."""
    few = [found[(2 * place + 1) * len(found) // (2 * num)] for place in range(min(num, len(found)))]
    sizes, sums, device = memory.measured(model), Sensitivity(model), next(model.parameters()).device
    width = max(len(one.prefix) + len(one.rest) for one in few)

    def need(rows: int) -> dict[str, int]:
        kept = model.config.get_text_config().num_hidden_layers * sizes.experts * rows * width
        return {"logits": 2 * sizes.logits * rows * width, "what the way back needs": kept}

    machine.refuse_above(limit, need(1), f"a document of {width} tokens", f"lower --prefix or --steps, {memory.RAISE}")
    size = next((rows for rows in range(TOGETHER, 1, -1) if limit is None or sum(need(rows).values()) <= limit), 1)
    for start in range(0, len(few), size):
        rows = [one.prefix + one.rest for one in few[start : start + size]]
        ids_BL, mask_BL = (part.to(device) for part in left_padded(rows))
        sums.add(ids_BL, mask_BL, position_ids=positions(mask_BL))
        advance(f"{start + len(rows)} of {len(few)} documents backwards")
    return sums.layers()


def by_layer(artifact: Artifact) -> dict[int, float]:
    """Each layer's sensitivity, where it was measured."""
    return {number: of_layer(layer) for number, layer in artifact.layers.items() if "sensitivity" in layer}


def source(settings: fidelity.Settings) -> str:
    """How the data are called in a calibration's provenance. A file's documents are split whole; before they were, one
    command's windows overlapped with another's, so that is said."""
    how = "" if settings.data == "testbed" else WHOLE
    return f"{settings.data}, split {settings.split}{how}, {settings.num_sequences} documents"
