"""`lynx-moe calibrate`: the tensors that calibrated policies need, measured in one pass over documents."""

from collections.abc import Callable
from pathlib import Path

from lynx_moe.calibration.artifact import Artifact, Provenance, save
from lynx_moe.engines.transformers.experts import Collector
from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.lockstep import left_padded, positions
from lynx_moe.lab.shared import record

TOGETHER = 16
WHOLE = " by document"


def calibrate(
    settings: fidelity.Settings,
    path: Path,
    measure: str = "frobenius",
    advance: Callable[[str], None] = lambda message: None,
) -> Artifact:
    """Measures all tokens of the documents, prompts and continuations, and writes the file.

    Raises ValueError for data that cannot be read, exercises that are kept for testing, a model without MoE layers, and
    one whose experts cannot be called one by one.
    """
    if settings.data == "testbed" and settings.split != "calibrate":
        raise ValueError(f"split {settings.split!r} of the testbed is tested on; calibrate with split 'calibrate'")
    found = sorted(fidelity.documents(settings), key=lambda one: len(one.prefix) + len(one.rest))
    advance("loading the model")
    model, _ = fidelity.open_model(settings, [])
    collector = Collector(model)
    device = next(model.parameters()).device
    for start in range(0, len(found), TOGETHER):
        rows = [one.prefix + one.rest for one in found[start : start + TOGETHER]]
        ids_BL, mask_BL = (part.to(device) for part in left_padded(rows))
        collector.add(ids_BL, mask_BL, position_ids=positions(mask_BL))
        advance(f"{start + len(rows)} of {len(found)} documents, {collector.num_tokens} tokens")
    about = Provenance(
        model=settings.model,
        data=source(settings),
        num_tokens=collector.num_tokens,
        seed=settings.seed,
        versions=record.environment()["versions"],
    )
    artifact = Artifact(layers=collector.layers(measure), provenance=about)
    save(artifact, path)
    return artifact


def source(settings: fidelity.Settings) -> str:
    """How the data are called in a calibration's provenance. A file's documents are split whole; before they were, one
    command's windows overlapped with another's, so that is said."""
    how = "" if settings.data == "testbed" else WHOLE
    return f"{settings.data}, split {settings.split}{how}, {settings.num_sequences} documents"
