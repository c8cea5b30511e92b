"""The list of seams is right for the installed vLLM, and notices what is missing."""

import seams


def test_the_installed_vllm_has_every_seam() -> None:
    assert seams.missing(seams.reader(seams.installed())) == []


def test_what_is_missing_is_named() -> None:
    read = seams.reader(seams.installed())

    def without_a_method(file: str) -> str:
        if file.endswith("llm_engine.py"):
            raise KeyError(file)
        return read(file).replace("def _dummy_run", "def _other_run")

    lost = seams.missing(without_a_method)
    assert "vllm/v1/engine/llm_engine.py" in lost
    assert "vllm/v1/worker/gpu_model_runner.py: GPUModelRunner._dummy_run" in lost
    assert len(lost) == 3
