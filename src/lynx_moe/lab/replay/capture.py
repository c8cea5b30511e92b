"""`lynx-moe record`: router logits of a decoding model, from vLLM's own batches or in lockstep on transformers."""

from dataclasses import asdict
from pathlib import Path

from lynx_moe.lab.fidelity import measure as fidelity
from lynx_moe.lab.fidelity.lockstep import decode
from lynx_moe.lab.replay import recording
from lynx_moe.lab.shared.documents import Document, batches, complain
from lynx_moe.lab.shared.engine import import_vllm, in_own_process, open_engine

ENGINES = ("vllm", "transformers")


def check(engine: str, batch_size: int, max_mib: float) -> None:
    """Raises ValueError for what cannot be recorded."""
    if engine not in ENGINES:
        raise ValueError(f"engine={engine!r} is unknown; allowed: {', '.join(ENGINES)}")
    if batch_size < 2:
        raise ValueError(f"batch size {batch_size}: one request alone is never remapped, so nothing would be recorded")
    if max_mib <= 0:
        raise ValueError(f"--max-mib {max_mib} must be positive")


def capture(engine: str, settings: fidelity.Settings, policy: str, max_mib: float, path: Path) -> Path:
    """Records one run into `path`. Batches have `settings.batch_sizes[0]` sequences; the model decodes under `policy`.

    vllm: requests come and go as they do in serving, and answers are the model's own (greedy).
    transformers: batches in lockstep along the true continuation.

    Raises ValueError for a bad option, bad data, or a model that cannot be recorded.
    """
    check(engine, settings.batch_sizes[0], max_mib)
    options = (settings, fidelity.documents(settings), policy, int(max_mib * 2**20), path)
    if engine == "transformers":
        return _transformers(*options)
    return in_own_process(_vllm, *options)


def _vllm(settings: fidelity.Settings, found: list[Document], policy: str, max_bytes: int, path: Path) -> Path:
    vllm = import_vllm()
    from lynx_moe.engines import vllm as engine

    size = settings.batch_sizes[0]
    options = {"max_num_seqs": size, "dtype": settings.dtype, "trust_remote_code": bool(settings.trust_remote_code)}
    llm = open_engine(settings.model, policy, enforce_eager=True, **options)
    fits = _fitting(found, llm.model_config.max_model_len)
    recorder = engine.record(max_bytes)
    params = [vllm.SamplingParams(temperature=0, max_tokens=len(document.rest)) for document in fits]
    llm.generate([{"prompt_token_ids": list(document.prefix)} for document in fits], params, use_tqdm=False)
    facts = {"engine": "vllm", "policy": engine.stats().policy, "shape": asdict(engine.shape())}
    return recording.save(recorder, path, settings=asdict(settings), **facts)


def _fitting(found: list[Document], longest: int) -> list[Document]:
    """Those that the engine takes: it ends at a longer one and would lose the rest. Raises ValueError if none fits."""
    fits = [document for document in found if len(document.prefix) + len(document.rest) <= longest]
    if not fits:
        raise ValueError(f"all {len(found)} sequences are longer than the {longest} tokens of the model; lower --steps")
    if len(fits) < len(found):
        complain(f"{len(found) - len(fits)} sequences longer than the {longest} tokens of the model are left out")
    return fits


def _transformers(settings: fidelity.Settings, found: list[Document], policy: str, max_bytes: int, path: Path) -> Path:
    cut = batches(found, settings.batch_sizes[0], "mixed", settings.seed)
    if not cut:
        raise ValueError(f"{len(found)} sequences fill no batch of {settings.batch_sizes[0]}; lower --batch-size")
    model, (run,) = fidelity.open_model(settings, [policy])
    recorder = run.record(max_bytes)
    for batch in cut:
        decode(model, batch, [run], "own")
    facts = {"engine": "transformers", "policy": run.policy.spec, "shape": asdict(run.shape)}
    return recording.save(recorder, path, settings=asdict(settings), **facts)
