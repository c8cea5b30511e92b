"""The tiny model, saved and opened once."""

from pathlib import Path
from typing import Any

import pytest
from tiny_moe import save_moe
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_moe(path)
    return path


@pytest.fixture(scope="session")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()
